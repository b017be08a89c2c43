"use strict";
// Editing, in the large view: each change goes to the server at once, which keeps it and says how the sample is then.
patchmint.edit = (() => {
  const { el } = patchmint;
  const [NEAR, NEAR_TOUCH] = [9, 22]; // pixels of the screen around a handle that are still the handle
  const LEAST = 3; // pixels of the screen: what is drawn shorter was a click
  const STEPS = 320; // of the keyboard, along an image's longer side
  const HANDLES = [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5]];
  const CURSORS = ["nwse", "ns", "nesw", "ew"];
  const SHIFTS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const bar = el("section", "edit-bar");
  const layer = el("canvas", "edit-layer");
  const chooser = { form: el("form", "edit-chooser"), input: el("input"), list: el("ul", "edit-choices"), target: null, at: 0, entries: [] };
  const status = el("p", "edit-status");
  const place = el("span", "edit-place", "least certain");
  const buttons = {};
  const done = []; // edits of this session, the last one last: { position, image, text }
  const undone = []; // the same with the edit
  const queue = { items: null, at: -1, current: false };
  let open = null; // what the large view shows: { position, sample, image, number, text }
  let chosen = null; // number of an instance of the image
  let draft = null; // { box, instance }: a box that isn't saved; of a new one the instance is null
  let drawing = false;
  let outlines = false;
  let busy = false;

  // The token is for this tab alone: an address that is copied doesn't have it.
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("patchmint-token", given);
    const rest = new URLSearchParams(location.hash.slice(1));
    rest.delete("token");
    history.replaceState(null, "", rest.size ? `#${rest}` : location.pathname);
  }
  const token = sessionStorage.getItem("patchmint-token") ?? "";

  function say(words) {
    status.textContent = words;
    const above = document.getElementById("state"); // where the large view isn't open
    above.textContent = bar.isConnected ? "" : words;
    above.hidden = !above.textContent;
  }

  const phrasesOf = (image) => image.texts.flatMap((text) => text.phrases.map((phrase) => ({ ...phrase, text: text.number })));
  const chosenPhrase = () => (open && chosen !== null ? phrasesOf(open.image).find((phrase) => phrase.instance === chosen) ?? null : null);
  const wordsOf = (text) => text.parts.map((part) => part[0]).join("");
  const sameBox = (one, other) => one.every((value, i) => Math.abs(value - other[i]) < 0.02);

  // Requests.

  // One thing after another: what is asked for meanwhile isn't done.
  async function run(action) {
    if (busy) return;
    busy = true;
    bar.setAttribute("aria-busy", "true");
    try {
      await action();
    } finally {
      busy = false;
      bar.removeAttribute("aria-busy");
    }
  }

  async function send(position, edit) {
    say(outlines && [...(edit?.add ?? []), ...(edit?.change ?? [])].some(({ box, mask }) => box && !mask) ? "Outlining…" : "Saving…");
    try {
      const sample = await patchmint.store.sample(position);
      const answer = await fetch("edit", {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Patchmint-Token": token },
        body: JSON.stringify({ position, seen: sample.edits, edit, outline: outlines }),
      });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error);
      await patchmint.store.replace(position, told.sample);
      return told;
    } catch (error) {
      say(error instanceof TypeError ? "Not saved: the server doesn't answer; is it still running?" : `Not saved: ${error.message}`);
      return null;
    }
  }

  // An edit of what is open. `box`: of the instance that is chosen afterwards; null: none is. Returns whether it is saved.
  async function make(edit, words, box = null) {
    const { position, number } = open;
    const told = await send(position, { image: number, ...edit });
    if (!told) return false;
    done.push({ position, image: number, text: patchmint.state.text });
    undone.length = 0;
    if (open?.position === position && open.number === number) shown(words, box);
    return true;
  }

  function shown(words, box) {
    [chosen, draft] = [null, null];
    const found = box && phrasesOf(open.sample.images[open.number]).filter((phrase) => sameBox(phrase.box, box));
    const own = found && (found.find((phrase) => phrase.origin === "corrected") ?? found[0]);
    if (own) chosen = own.instance;
    patchmint.set(own ? { text: own.text } : {});
    say(words);
  }

  async function goTo({ position, image, text }) {
    const { state } = patchmint;
    if (state.sample !== position || state.image !== image || state.text !== text) patchmint.set({ sample: position, image, text });
    const isThere = () => open?.position === position && open.number === image;
    for (let tries = 0; tries < 500 && !isThere(); tries++) await new Promise((then) => { setTimeout(then, 10); });
    return isThere();
  }

  async function undo() {
    if (draft) return leaveDraft();
    const last = done.at(-1) ?? (open?.sample.edits && { position: open.position, image: open.number, text: patchmint.state.text });
    if (!last) return say("There is nothing to undo.");
    if (!(await goTo(last))) return undefined;
    const told = await send(last.position, null);
    if (!told) return undefined;
    done.pop();
    undone.push({ ...last, edit: told.undone });
    return shown("Undone.", null);
  }

  async function redo() {
    const last = undone.at(-1);
    if (!last || !(await goTo(last)) || !(await send(last.position, last.edit))) return undefined;
    done.push(undone.pop());
    return shown("Redone.", null);
  }

  // What can be done with the chosen instance.

  const needsOne = (action) => () => {
    const phrase = chosenPhrase();
    if (!phrase) return say("Choose a box first: a click, or . and ,");
    return action(phrase);
  };

  // In the queue, what is settled makes way for the next.
  async function settle(edit, words, box) {
    const next = queue.current;
    if ((await make(edit, words, box)) && next) await stepQueue(1);
  }

  const accept = needsOne((phrase) => settle({ change: [{ instance: phrase.instance }] }, `Accepted: “${phrase.words}”.`, phrase.box));
  const remove = needsOne((phrase) => settle({ delete: [phrase.instance] }, `Deleted: “${phrase.words}”.`));
  const relabel = needsOne((phrase) => openChooser({ instance: phrase.instance, box: phrase.box }));

  function wrong() {
    const box = chosenPhrase()?.box;
    return open.sample.wrong ? make({ wrong: false }, "Not wrong any more.", box) : settle({ wrong: true }, "Marked wrong: the whole sample.", box);
  }

  function stepChosen(step) {
    const text = open.image.texts[open.text];
    if (!text?.phrases.length) return say("Nothing was found for this text; n draws a box.");
    const at = text.phrases.findIndex((phrase) => phrase.instance === chosen);
    const next = at < 0 ? (step > 0 ? 0 : text.phrases.length - 1) : (at + step + text.phrases.length) % text.phrases.length;
    return choose(text.phrases[next].instance);
  }

  function choose(instance) {
    queue.current = false;
    chosen = instance;
    [draft, drawing] = [null, false];
    closeChooser();
    const phrase = chosenPhrase();
    say(phrase ? `Chosen: “${phrase.words}” ${phrase.score_words}` : "");
    redraw();
  }

  // Drawing.

  function draw() {
    if (drawing) return leaveDraft();
    if (open.text < 0) return say("No text labels this image, so nothing can be named in it.");
    const { width, height } = open.image.image;
    drawing = true;
    draft = { box: [width / 3, height / 3, (2 * width) / 3, (2 * height) / 3], instance: null };
    chosen = null;
    say("Draw with the pointer; or arrows move it, Shift and arrows size it, Enter takes it, Esc leaves it.");
    return redraw();
  }

  const moveByKeys = needsOne((phrase) => {
    draft = { box: [...phrase.box], instance: phrase.instance };
    say("Arrows move it, Shift and arrows size it, Enter saves it, Esc leaves it.");
    redraw();
  });

  function shift(event) {
    const { width, height } = open.image.image;
    const step = Math.max(Math.max(width, height) / STEPS, 1);
    const [x, y] = SHIFTS[event.key].map((way) => way * step);
    draft.box = event.shiftKey ? grown(draft.box, x, y) : moved(draft.box, x, y);
    redraw();
  }

  function moved([x0, y0, x1, y1], x, y) {
    const { width, height } = open.image.image;
    const across = Math.min(Math.max(x, -x0), width - x1);
    const down = Math.min(Math.max(y, -y0), height - y1);
    return [x0 + across, y0 + down, x1 + across, y1 + down];
  }

  const grown = ([x0, y0, x1, y1], x, y) => inside([x0, y0, Math.max(x1 + x, x0 + 1), Math.max(y1 + y, y0 + 1)]);

  function inside([x0, y0, x1, y1]) {
    const { width, height } = open.image.image;
    const within = (value, end) => Math.round(100 * Math.min(Math.max(value, 0), end)) / 100;
    return [within(Math.min(x0, x1), width), within(Math.min(y0, y1), height), within(Math.max(x0, x1), width), within(Math.max(y0, y1), height)];
  }

  function take() {
    const box = inside(draft.box);
    draft.box = box;
    if (draft.instance === null) return openChooser({ box });
    return make({ change: [{ instance: draft.instance, box }] }, outlines ? "Moved, and outlined again." : "Moved: the box is the mask.", box);
  }

  function leaveDraft() {
    [draft, drawing] = [null, false];
    closeChooser();
    say("");
    redraw();
  }

  // Position of a pointer in the image, and pixels of the image for one of the screen.
  function at(event) {
    const frame = layer.getBoundingClientRect();
    const scale = open.image.image.width / frame.width;
    return { x: (event.clientX - frame.left) * scale, y: (event.clientY - frame.top) * scale, scale };
  }

  function handleAt(box, { x, y, scale }, touch) {
    const near = (touch ? NEAR_TOUCH : NEAR) * scale;
    const [x0, y0, x1, y1] = box;
    return HANDLES.findIndex(([across, down]) => Math.abs(x0 + across * (x1 - x0) - x) <= near && Math.abs(y0 + down * (y1 - y0) - y) <= near);
  }

  const holds = ([x0, y0, x1, y1], { x, y }) => x >= x0 && x <= x1 && y >= y0 && y <= y1;
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);

  function press(event) {
    if (!open?.image.texts || event.button || busy) return;
    const from = at(event);
    const box = draft?.box ?? chosenPhrase()?.box;
    const instance = draft ? draft.instance : chosen;
    const handle = box && !drawing ? handleAt(box, from, event.pointerType === "touch") : -1;
    let grip = { from, box, handle, instance, moved: false };
    if (drawing) grip = { from, box: [from.x, from.y, from.x, from.y], handle: 4, instance: null, moved: false };
    else if (!box || (handle < 0 && !holds(box, from))) grip.handle = null; // a click, at most
    layer.setPointerCapture(event.pointerId);
    event.preventDefault();
    layer.grip = grip;
  }

  function drag(event) {
    if (!open?.image.texts) return;
    const to = at(event);
    const { grip } = layer;
    if (!grip) return hover(event, to);
    const [x, y] = [to.x - grip.from.x, to.y - grip.from.y];
    if (Math.max(Math.abs(x), Math.abs(y)) >= LEAST * to.scale) grip.moved = true;
    if (!grip.moved || grip.handle === null) return;
    const box = grip.handle < 0 ? moved(grip.box, x, y) : grip.box.map((value, i) => {
      const side = HANDLES[grip.handle][i % 2];
      return (i < 2 ? side === 0 : side === 1) ? value + (i % 2 ? y : x) : value;
    });
    draft = { box: inside(box), instance: grip.instance };
    redraw();
  }

  function release(event) {
    const { grip } = layer;
    layer.grip = null;
    if (!grip) return;
    if (grip.moved && grip.handle !== null) {
      if (draft && Math.min(draft.box[2] - draft.box[0], draft.box[3] - draft.box[1]) >= 1) {
        drawing = false;
        run(take);
      }
      return;
    }
    if (drawing) return;
    // Of boxes that lie over each other a click chooses the smallest, the next click the next one.
    const here = (open.image.texts[open.text]?.phrases ?? []).filter((phrase) => holds(phrase.box, at(event))).sort((a, b) => area(a.box) - area(b.box));
    const last = here.findIndex((phrase) => phrase.instance === chosen);
    choose(here.length ? here[(last + 1) % here.length].instance : null);
  }

  function hover(event, to) {
    const box = draft?.box ?? chosenPhrase()?.box;
    const handle = box && !drawing ? handleAt(box, to, false) : -1;
    layer.style.cursor = drawing ? "crosshair" : handle >= 0 ? `${CURSORS[handle % 4]}-resize` : box && holds(box, to) ? "move" : "default";
  }

  function redraw() {
    if (!open) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    layer.width = Math.max(Math.round(layer.clientWidth * ratio), 1);
    layer.height = Math.max(Math.round(layer.clientHeight * ratio), 1);
    const phrase = chosenPhrase();
    for (const item of document.querySelectorAll("#detail .phrase")) item.setAttribute("aria-pressed", String(Number(item.dataset.instance) === chosen));
    for (const name of ["move", "relabel", "accept", "delete"]) buttons[name].disabled = !phrase;
    buttons.wrong.setAttribute("aria-pressed", String(Boolean(open.sample.wrong)));
    buttons.redo.disabled = !undone.length;
    buttons.undo.disabled = !done.length && !open.sample.edits;
    buttons.new.setAttribute("aria-pressed", String(drawing));
    buttons.outline.setAttribute("aria-pressed", String(outlines));
    const box = draft?.box ?? phrase?.box;
    if (!box || !open.image.image) return;
    const context = layer.getContext("2d");
    const scale = layer.width / open.image.image.width;
    const [x0, y0, x1, y1] = box.map((value) => value * scale);
    for (const [width, colour] of [[5, "rgb(10 12 16 / 0.8)"], [2.5, "#fff"]]) {
      context.lineWidth = width * ratio;
      context.strokeStyle = colour;
      context.setLineDash(draft && colour === "#fff" ? [7 * ratio, 5 * ratio] : []);
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
    context.setLineDash([]);
    context.lineWidth = 1.5 * ratio;
    context.fillStyle = "#fff";
    context.strokeStyle = "rgb(10 12 16)";
    const side = 8 * ratio;
    for (const [across, down] of HANDLES) {
      const square = [x0 + across * (x1 - x0) - side / 2, y0 + down * (y1 - y0) - side / 2, side, side];
      context.fillRect(...square);
      context.strokeRect(...square);
    }
  }

  // The phrase that a box answers to.

  function openChooser(target) {
    chooser.target = target;
    chooser.form.hidden = false;
    status.hidden = true;
    chooser.input.value = "";
    chooser.at = 0;
    fillChooser();
    if (!matchMedia("(pointer: coarse)").matches) chooser.input.focus(); // else its keyboard would hide the choices
    redraw();
  }

  function closeChooser() {
    chooser.target = null;
    chooser.form.hidden = true;
    status.hidden = false;
  }

  function fillChooser() {
    const typed = chooser.input.value.trim();
    const known = new Map();
    const texts = [...open.image.texts].sort((a, b) => (b.number === patchmint.state.text) - (a.number === patchmint.state.text) || a.number - b.number);
    for (const text of texts) {
      for (const { words, span } of text.phrases) known.set(`${text.number} ${span}`, { words, named: { text: text.number, span } });
    }
    const fits = [...known.values()].filter(({ words }) => words.toLowerCase().includes(typed.toLowerCase()));
    const text = open.image.texts[open.text];
    const whole = typed ? [] : [{ words: "the whole text", named: { text: text.number, span: [0, Array.from(wordsOf(text)).length] } }];
    chooser.entries = [...(typed && !fits.some(({ words }) => words.toLowerCase() === typed.toLowerCase()) ? [typedEntry(typed)] : []), ...fits, ...whole];
    chooser.at = Math.min(chooser.at, Math.max(chooser.entries.length - 1, 0));
    chooser.list.replaceChildren(...chooser.entries.map(choice));
    chooser.input.setAttribute("aria-activedescendant", chooser.entries.length ? `edit-choice-${chooser.at}` : "");
    chooser.list.children[chooser.at]?.scrollIntoView({ block: "nearest" });
  }

  // Typed words are looked for in the text that is shown, and then in the others.
  function typedEntry(words) {
    const text = open.image.texts[open.text];
    const here = wordsOf(text).toLowerCase().includes(words.toLowerCase());
    return { words, named: here ? { text: text.number, phrase: words } : { phrase: words } };
  }

  function choice({ words, named }, number) {
    const item = el("li", "edit-choice");
    item.id = `edit-choice-${number}`;
    item.setAttribute("role", "option");
    item.setAttribute("aria-selected", String(number === chooser.at));
    item.append(el("bdi", "", words), el("span", "edit-choice-text", named.phrase ? "as typed" : `text ${named.text + 1}`));
    item.addEventListener("click", () => { chooser.at = number; run(takeChoice); });
    return item;
  }

  function takeChoice() {
    const entry = chooser.entries[chooser.at];
    const { target } = chooser;
    if (!entry || !target) return say("Type words of one of the texts.");
    closeChooser();
    drawing = false;
    const { box, instance } = target;
    if (instance === undefined) return make({ add: [{ ...entry.named, box }] }, `Added: “${entry.words}”.`, box);
    return make({ change: [{ instance, ...entry.named }] }, `Now it is “${entry.words}”.`, box);
  }

  function chooserKey(event) {
    event.stopPropagation();
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && chooser.entries.length) chooser.at = (chooser.at + step + chooser.entries.length) % chooser.entries.length;
    if (step) fillChooser();
    else if (event.key === "Enter") run(takeChoice);
    else if (event.key === "Escape") leaveDraft();
    else return;
    event.preventDefault();
  }

  // The least certain, one after the other.

  async function stepQueue(step) {
    if (!queue.items) {
      say("Looking for the least certain…");
      try {
        queue.items = await patchmint.store.doubts();
      } catch {
        return say("The least certain can't be found: a sample is damaged; run patchmint inspect verify.");
      }
    }
    const { items } = queue;
    for (let next = queue.at + step; next >= 0 && next < items.length; next += step) {
      const { position, image, text, box, why } = items[next];
      const sample = await patchmint.store.sample(position);
      const phrase = sample.images[image]?.texts && phrasesOf(sample.images[image]).find((each) => each.text === text && sameBox(each.box, box));
      // What was looked at in the meantime isn't shown again, but on the way back.
      if (!phrase || (step > 0 && (phrase.origin === "corrected" || sample.wrong))) continue;
      queue.at = next;
      if (!(await goTo({ position, image, text }))) return undefined;
      choose(phrase.instance);
      queue.current = true;
      place.textContent = `least certain ${next + 1} of ${items.length}`;
      return say(`“${phrase.words}”: ${why}`);
    }
    return say(items.length ? `That was the ${step > 0 ? "last" : "first"} of the least certain.` : "Nothing is in doubt.");
  }

  // The large view calls this with what it shows.
  function show(now, stage) {
    const other = open?.position !== now.position || open.number !== now.number;
    if (other) {
      [chosen, draft, drawing] = [null, null, false];
      queue.current = false;
      closeChooser();
      say("");
    }
    open = now;
    if (layer.parentElement !== stage) stage.append(layer);
    if (other && open.sample.edits) say(`${open.sample.edits} ${open.sample.edits === 1 ? "edit" : "edits"}, not applied yet.`);
    bar.classList.toggle("is-wrong", Boolean(open.sample.wrong));
    redraw();
  }

  function leave() {
    open = null;
    layer.remove();
  }

  function toggleOutlines() {
    const { outlines: offer } = patchmint.store.meta.edit;
    if (!offer.available) return say(`A box is its mask: ${offer.remark}`);
    outlines = !outlines;
    say(outlines ? "Boxes that you draw or move are outlined." : "A box that you draw or move is the mask.");
    return redraw();
  }

  function actions() {
    const always = { q: () => stepQueue(1), Q: () => stepQueue(-1), "Ctrl+z": undo, u: undo, "Ctrl+Z": redo, "Ctrl+y": redo, r: redo };
    if (!open?.image.texts) return always;
    const drafting = draft && { Enter: take, Escape: leaveDraft, ...Object.fromEntries(Object.keys(SHIFTS).map((key) => [key, shift])) };
    return {
      ...always, n: draw, l: relabel, a: accept, x: remove, Delete: remove, w: wrong, o: toggleOutlines, e: moveByKeys,
      ".": () => stepChosen(1), ",": () => stepChosen(-1), ...drafting,
    };
  }

  const keys = () => Object.fromEntries(Object.entries(actions()).map(([key, action]) => [key, (event) => run(() => action(event))]));

  function button(name, words, key, label) {
    const made = el("button", "switch", words);
    made.type = "button";
    made.title = label;
    made.setAttribute("aria-label", label);
    made.append(" ", el("kbd", "", key));
    made.addEventListener("click", () => keys()[key]?.());
    made.dataset.edit = name;
    buttons[name] = made;
    return made;
  }

  function start() {
    const { edit } = patchmint.store.meta;
    outlines = edit.outlines.available;
    const group = (label, ...parts) => {
      const made = el("div", "edit-group");
      made.setAttribute("role", "group");
      made.setAttribute("aria-label", label);
      made.append(...parts);
      return made;
    };
    bar.setAttribute("aria-label", "Edit");
    status.setAttribute("role", "status");
    buildChooser();
    bar.append(
      group("Box", button("new", "new", "n", "New box"), button("move", "move", "e", "Move or size the box by keyboard"),
        button("relabel", "relabel", "l", "Another phrase"), button("accept", "accept", "a", "Accept: it is right"),
        button("delete", "delete", "x", "Delete"), button("outline", "outline", "o", "Outline what is drawn")),
      group("Sample", button("wrong", "wrong", "w", "The whole sample is wrong"), button("undo", "undo", "u", "Undo"), button("redo", "redo", "r", "Redo")),
      group("Least certain", button("previous", "‹", "Q", "Previous of the least certain"), button("next", "›", "q", "Next of the least certain"), place),
      chooser.form, status,
    );
    buttons.outline.setAttribute("aria-disabled", String(!edit.outlines.available));
    if (edit.outlines.remark) buttons.outline.title = edit.outlines.remark;
    const review = el("button", "edit-review", "least certain ");
    review.type = "button";
    review.append(el("kbd", "", "q"));
    review.addEventListener("click", () => keys().q());
    document.getElementById("theme").before(review);
    help(edit.file);
    layer.addEventListener("pointerdown", press);
    layer.addEventListener("pointermove", drag);
    layer.addEventListener("pointerup", release);
    layer.addEventListener("pointercancel", () => { layer.grip = null; leaveDraft(); });
    new ResizeObserver(redraw).observe(layer);
    if (!token) {
      const notice = document.getElementById("notice");
      notice.prepend("This page can't save: open the address that the terminal shows. ");
      notice.hidden = false;
    }
  }

  function buildChooser() {
    const { form, input, list } = chooser;
    Object.assign(input, { type: "text", placeholder: "what is it?", autocomplete: "off", dir: "auto" });
    for (const [name, value] of Object.entries({ role: "combobox", "aria-label": "What is it? Words of the texts", "aria-controls": "edit-choices", "aria-expanded": "true" })) input.setAttribute(name, value);
    list.id = "edit-choices";
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", "Phrases");
    input.addEventListener("keydown", chooserKey);
    input.addEventListener("input", () => { chooser.at = 0; fillChooser(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    const cancel = el("button", "", "✕");
    cancel.type = "button";
    cancel.setAttribute("aria-label", "Leave it");
    cancel.addEventListener("click", leaveDraft);
    form.append(input, list, cancel);
    form.hidden = true;
  }

  function help(file) {
    const rows = [
      ["n", "a new box: draw it, or arrows and Shift with arrows, then Enter; then choose its words"],
      [". ,", "next and previous box; a click chooses one, too, and dragging moves or sizes it"],
      ["e", "move or size the box by the arrows"], ["l", "another phrase"], ["a", "accept: it is right as it is"], ["x", "delete"],
      ["o", "whether what is drawn or moved is outlined by SAM, or is the mask itself"],
      ["w", "the whole sample is wrong, or isn't"], ["u r", "undo, redo"], ["q Q", "next and previous of the least certain"],
    ];
    const list = el("dl", "edit-help");
    for (const [named, words] of rows) {
      const term = el("dt");
      for (const key of named.split(" ")) term.append(el("kbd", "", key), " ");
      list.append(term, el("dd", "", words));
    }
    document.querySelector("#help .help-body dl").after(
      el("h3", "", "Editing"), list,
      el("p", "", `Every change is saved at once, in ${file}; patchmint correct applies them, and labels follow.`),
    );
  }

  return { bar, show, leave, keys, start, choose };
})();
