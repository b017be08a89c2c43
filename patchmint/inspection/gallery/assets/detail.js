"use strict";
// One sample, large: all texts, what was found, where it comes from, its codes.
patchmint.detail = (() => {
  const { el } = patchmint;
  const TEXT_SHOWN = 1500;
  const BEGINNING = 160;
  const dialog = () => document.getElementById("detail");
  const STRIP_TEXT = 600;
  let open = null; // { position, sample, stage, strip of a document }
  let marked = -1;

  function button(className, label, text, action) {
    const made = el("button", className, text);
    made.type = "button";
    made.setAttribute("aria-label", label);
    made.addEventListener("click", action);
    return made;
  }

  async function show(position) {
    if (open?.position === position) return update();
    leave();
    const own = { position, sample: null, stage: patchmint.makeStage(!patchmint.edit), strip: null };
    open = own;
    marked = -1;
    const top = el("div", "dialog-top");
    const key = el("h2", "", "…");
    key.id = "detail-key";
    key.tabIndex = -1;
    key.autofocus = true;
    top.append(
      key,
      button("step", "Previous sample", "‹", () => patchmint.step(-1)),
      button("step", "Next sample", "›", () => patchmint.step(1)),
      button("close", "Close", "✕", () => dialog().close()),
    );
    const side = el("div", "side");
    const body = el("div", "detail-body");
    const viewer = el("div", "viewer");
    viewer.append(own.stage.element);
    body.append(viewer, side);
    // The same switches as above the cards: what is behind a modal dialog can't be reached.
    dialog().replaceChildren(top, document.getElementById("bar"), ...(patchmint.edit ? [patchmint.edit.bar] : []), body);
    if (!dialog().open) dialog().showModal();
    try {
      own.sample = await patchmint.store.sample(position);
    } catch {
      key.textContent = "this sample's file is missing; make the gallery again";
      return undefined;
    }
    if (open !== own) return undefined;
    key.replaceChildren(el("bdi", "", own.sample.key));
    if (own.sample.sequence) {
      own.strip = patchmint.makeStrip(own.sample, Infinity, STRIP_TEXT, (image) => { marked = -1; patchmint.set({ image }); });
      viewer.append(own.strip.element);
    }
    own.side = side;
    return update();
  }

  function update() {
    const { sample, side, stage } = open;
    if (!sample) return;
    const image = imageShown();
    const text = image.texts ? patchmint.placeOf(image, patchmint.state.text) : 0;
    stage.show(image, text, patchmint.state, marked);
    open.strip?.show(patchmint.state, open.sample.images.indexOf(image));
    const scrolled = side.scrollTop;
    const codes = open.codesOf === image ? side.querySelector("details.codes") : null;
    open.codesOf = image;
    if (!image.texts) return side.replaceChildren(facts(sample, image));
    const unlabelled = text < 0 ? el("p", "nothing", "No text labels this image.") : null;
    const parts = [notice(sample), texts(image, text), unlabelled, text < 0 ? null : fullText(image, text), text < 0 ? null : phrases(image, text), facts(sample, image)];
    side.replaceChildren(...parts.filter(Boolean), ...(codes ? [codes] : image.codes ? [codesTable(image.codes)] : []));
    side.scrollTop = scrolled;
    patchmint.edit?.show({ position: open.position, sample, image, number: sample.images.indexOf(image), text }, stage.drawn);
    return undefined;
  }

  const imageShown = () => open.sample.images[Math.min(patchmint.state.image, open.sample.images.length - 1)];

  function notice(sample) {
    return sample.notice && sample.notice !== patchmint.store.meta.notice ? el("p", "notice", sample.notice) : null;
  }

  function texts(sample, chosen) {
    if (sample.texts.length < 2) return null;
    const list = el("div", "texts");
    list.setAttribute("role", "group");
    list.setAttribute("aria-label", "Texts that label this image");
    sample.texts.forEach((text, number) => {
      const choice = el("button", "text-choice");
      choice.type = "button";
      choice.setAttribute("aria-pressed", String(number === chosen));
      const words = el("span", "text-beginning");
      words.dir = "auto";
      if (patchmint.fillText(words, text.parts, BEGINNING)) words.append("…");
      choice.append(el("span", "text-number", String(text.number + 1)), words);
      if (sample.labels) choice.append(el("span", "text-share", sample.labels.kept[number].share));
      choice.addEventListener("click", () => { marked = -1; patchmint.set({ text: text.number }); });
      list.append(choice);
    });
    return list;
  }

  function fullText(sample, number) {
    const box = el("div", "text");
    const words = el("p", "text-words");
    words.dir = "auto";
    const { parts } = sample.texts[number];
    const left = patchmint.fillText(words, parts, TEXT_SHOWN);
    box.append(words);
    if (left) {
      const more = button("more", "Show the whole text", `more (${left.toLocaleString("en")} characters)`, () => {
        words.textContent = "";
        patchmint.fillText(words, parts, Infinity);
        more.remove();
      });
      box.append(more);
    }
    const kept = patchmint.keptCount(sample, number);
    if (kept) {
      const how = patchmint.state.keep === null ? "as labelled" : `the best ${patchmint.state.keep} % by coverage`;
      const ofView = patchmint.ofFirstView(sample);
      const unlike = ofView ? " (a patch selector takes the ratio over all views)" : "";
      const share = kept.share ? ` (${kept.share})` : "";
      box.append(el("p", "kept-line", `kept ${kept.kept} of ${kept.all} patches${ofView}${share}, ${how}${unlike}`));
    }
    return box;
  }

  function phrases(sample, number) {
    const found = sample.texts[number].phrases;
    if (!found.length) return el("p", "nothing", sample.labels ? "Nothing was found for this text." : "This sample has no labels.");
    const list = el("ul", "phrases");
    found.forEach((phrase, place) => {
      const item = el("button", "phrase");
      item.type = "button";
      const chip = el("span", "chip");
      chip.style.backgroundColor = patchmint.store.meta.palette[phrase.colour];
      const words = el("bdi", "phrase-words", phrase.words);
      item.append(chip, words, el("span", "phrase-score", phrase.score_words || "no score"));
      const mark = (which) => () => { marked = which; open.stage.show(sample, number, patchmint.state, marked); };
      item.addEventListener("pointerenter", mark(place));
      item.addEventListener("pointerleave", mark(-1));
      item.addEventListener("focus", mark(place));
      item.addEventListener("blur", mark(-1));
      item.dataset.instance = phrase.instance;
      if (patchmint.edit) item.addEventListener("click", () => patchmint.edit.choose(phrase.instance));
      const row = el("li");
      row.append(item);
      list.append(row);
    });
    return list;
  }

  function facts(sample, shown) {
    const { image, source, grid } = shown;
    const rows = [["position", `${(sample.index + 1).toLocaleString("en")} in the data set`], ["shard", `${sample.shard}, row ${sample.row}`]];
    if (sample.sequence) rows.push(["number", `image ${sample.images.indexOf(shown) + 1} of ${sample.images.length}`]);
    if (image) rows.push(["image", `${image.width} × ${image.height} px, ${image.format}, ${image.mode}`]);
    if (sample.id) rows.push(["id", sample.id]);
    if (source) rows.push(["source", source.start >= 0 ? `${source.path} at ${source.start}` : source.path]);
    if (grid) rows.push(["grid", `${grid.rows} × ${grid.cols}, ${grid.fit}${grid.views > 1 ? `; the first of ${grid.views} views is drawn` : ""}`]);
    const list = el("dl", "facts");
    for (const [name, value] of rows) {
      const cell = el("dd");
      cell.append(el("bdi", "", value));
      list.append(el("dt", "", name), cell);
    }
    return list;
  }

  function codesTable({ shape, values }) {
    const box = el("details", "codes");
    box.append(el("summary", "", `codes, ${shape.join(" × ")}`));
    box.addEventListener("toggle", () => {
      if (!box.open || box.querySelector("table")) return;
      const table = el("table");
      const cols = shape.length > 1 ? values.length / shape[0] : values.length;
      for (let start = 0; start < values.length; start += cols) {
        const row = table.insertRow();
        for (const value of values.slice(start, start + cols)) row.insertCell().textContent = value;
      }
      const scroll = el("div", "codes-scroll");
      scroll.tabIndex = 0;
      scroll.append(table);
      box.append(scroll);
    });
    return box;
  }

  function stepText(step) {
    const image = open?.sample && imageShown();
    if (!image?.texts?.length) return;
    const place = Math.min(Math.max(patchmint.placeOf(image, patchmint.state.text) + step, 0), image.texts.length - 1);
    patchmint.set({ text: image.texts[place].number });
  }

  function stepImage(step) {
    if (!open?.sample) return;
    marked = -1;
    const { images } = open.sample;
    patchmint.set({ image: Math.min(Math.max(images.indexOf(imageShown()) + step, 0), images.length - 1) });
  }

  function leave() {
    open?.stage.leave();
    open?.strip?.leave();
    patchmint.edit?.leave();
    open = null;
  }

  function close() {
    document.getElementById("filters").before(document.getElementById("bar"));
    leave();
    if (dialog().open) dialog().close();
  }

  return { show, close, stepText, stepImage, get position() { return open?.position ?? null; } };
})();
