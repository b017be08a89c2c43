"use strict";
// Stages (a photo with what is drawn on it) and cards. Texts come from anybody: they only ever become text nodes.
patchmint.el = (tag, className = "", text = "") => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
};

patchmint.percent = (share) => `${(100 * share).toFixed(1)} %`;

// Fills an element with a text, its phrases on their colours; returns how many characters were left out.
patchmint.fillText = (element, parts, limit) => {
  let room = limit;
  let left = 0;
  for (const [text, colour] of parts) {
    // A surrogate pair isn't torn apart.
    const cut = text.length > room ? room - (/[\ud800-\udbff]/.test(text[room - 1] ?? "") ? 1 : 0) : text.length;
    const piece = text.slice(0, Math.max(cut, 0));
    room = Math.max(room - text.length, 0);
    left += text.length - piece.length;
    if (!piece) continue;
    if (colour < 0) {
      element.append(piece);
    } else {
      const mark = patchmint.el("mark", "", piece);
      mark.style.backgroundColor = patchmint.store.meta.palette[colour];
      mark.style.color = patchmint.draw.inkOn(patchmint.store.meta.palette[colour]);
      element.append(mark);
    }
  }
  return left;
};

// The place of a text among those that label an image; where it doesn't, the first; -1: none does.
patchmint.placeOf = (image, number) => {
  const place = image.texts.findIndex((text) => text.number === number);
  return place < 0 && image.texts.length ? 0 : place;
};

// An image of a sample. With `plain`, the photo stands beside what is drawn on it.
patchmint.makeStage = (plain = false) => {
  const { el } = patchmint;
  const frame = el("div", "frame");
  const stage = el("div", "stage");
  const [photo, masks, decoded] = [el("img", "photo"), el("img", "masks"), el("img", "photo")];
  const canvas = el("canvas", "overlay");
  const second = el("div", "stage second");
  const alone = el("div", "stage plain");
  const own = el("img", "photo");
  const note = el("p", "frame-note");
  stage.append(photo, masks, canvas);
  second.append(decoded, el("span", "stage-name", "decoded"));
  alone.append(own, el("span", "stage-name", "photo"));
  frame.append(...(plain ? [alone] : []), stage, second, note);
  let shown = null;

  function source(image, url, alternative) {
    if (image.getAttribute("src") === url) return;
    image.alt = alternative;
    image.onerror = () => { image.hidden = true; tell(`${alternative}: the picture can't be had`); };
    image.src = url;
  }

  function tell(words) {
    note.textContent = words;
    note.hidden = !words;
  }

  function draw() {
    if (shown && !stage.hidden) patchmint.draw.overlay(canvas, shown.sample, shown.text, shown.show, shown.marked);
  }

  function show(sample, text, switches, marked = -1) {
    shown = sample.texts ? { sample, text, show: switches, marked } : null;
    const image = sample.image ?? { width: 4, height: 3 };
    for (const part of [frame, alone, stage, second]) part.style.setProperty("--ratio", image.width / image.height);
    stage.hidden = !sample.picture;
    const partly = [sample.grid?.problem, ...sample.remarks].filter(Boolean).join("; ");
    tell(sample.problem ? `This sample can't be shown: ${sample.problem}` : partly);
    if (sample.picture) source(photo, patchmint.store.picture(sample), `Photo of sample ${sample.key}`);
    for (const each of [photo, own]) each.classList.toggle("pixels", Math.max(image.width, image.height) <= 64);
    const covered = ["patches", "boxes", "masks", "heat"].some((name) => switches[name]);
    alone.hidden = !(plain && sample.picture && covered);
    if (!alone.hidden) source(own, patchmint.store.picture(sample), `Photo of sample ${sample.key}, nothing drawn on it`);
    const masked = switches.masks && Boolean(sample.masks[text]);
    if (masked) source(masks, patchmint.store.masks(sample, text), "Masks");
    masks.hidden = !masked;
    second.hidden = !(switches.decoded && sample.decoded);
    if (!second.hidden) source(decoded, patchmint.store.decoded(sample), "Picture decoded from the codes");
    const stages = 1 + !second.hidden + !alone.hidden;
    frame.dataset.stages = stages;
    frame.classList.toggle("stacked", plain && image.width > image.height);
    frame.style.setProperty("--stages", stages);
    canvas.setAttribute("aria-hidden", "true");
    draw();
  }

  const observer = new ResizeObserver(draw);
  observer.observe(canvas);
  return { element: frame, drawn: stage, show, leave: () => observer.disconnect() };
};

patchmint.cards = (() => {
  const { el } = patchmint;
  const TEXT_SHOWN = 320;
  const [STRIP_IMAGES, STRIP_TEXT] = [6, 160]; // of a document's, on a card
  let cards = [];
  let drawn = "";

  const grid = () => document.getElementById("cards");
  const columns = () => getComputedStyle(grid()).gridTemplateColumns.split(" ").length;

  function build(position) {
    const element = el("a", "card");
    element.dataset.position = position;
    const stage = patchmint.makeStage();
    const text = el("p", "card-text");
    text.dir = "auto";
    const facts = el("p", "card-facts");
    const key = el("p", "card-key", "…");
    const place = el("span", "card-place");
    element.append(stage.element, key, text, facts);
    return { position, element, stage, text, facts, key, place, sample: null, textNumber: 0 };
  }

  const isWanted = (text) => text.toLowerCase().includes(patchmint.state.query.toLowerCase());

  // The first text that the search is about.
  function chooseText(card) {
    const found = patchmint.state.query ? card.sample.texts.findIndex((t) => isWanted(t.parts.map((p) => p[0]).join(""))) : 0;
    card.textNumber = Math.max(found, 0);
  }

  // Of a document the strip, and below it the first of its texts that the search is about.
  function fillDocument(card) {
    const { sample } = card;
    const strip = patchmint.makeStrip(sample, STRIP_IMAGES, STRIP_TEXT);
    card.stage.leave();
    card.stage.element.replaceWith(strip.element);
    card.stage = strip;
    card.place.textContent = sample.images.length === 1 ? "1 image" : `${sample.images.length} images`;
    card.key.append(card.place);
    const found = patchmint.state.query ? sample.sequence.find((part) => isWanted(part.text)) : null;
    card.text.textContent = "";
    if (found && patchmint.fillText(card.text, [[found.text, -1]], TEXT_SHOWN)) card.text.append("…");
    return redraw(card);
  }

  function fill(card) {
    const { sample } = card;
    card.key.textContent = "";
    card.key.append(el("bdi", "", sample.key));
    if (sample.sequence) return fillDocument(card);
    if (sample.texts?.length > 1) card.key.append(card.place);
    if (!sample.texts) return card.stage.show(sample, 0, patchmint.state);
    chooseText(card);
    const text = sample.texts[card.textNumber];
    card.text.textContent = "";
    if (patchmint.fillText(card.text, text.parts, TEXT_SHOWN)) card.text.append("…");
    return redraw(card);
  }

  // Of the text that is drawn, and, where another has more, of that: it is what samples are sorted by.
  function ownWords(numbers, words, textNumber) {
    const largest = numbers.indexOf(Math.max(...numbers));
    const more = numbers[largest] > numbers[textNumber] ? ` (another text ${words[largest]})` : "";
    return `${words[textNumber] || "none"}${more}`;
  }

  // A text without phrases has no score.
  const bestPhrase = (text) =>
    text.phrases.reduce((best, phrase) => (phrase.score > best.score ? phrase : best), { score: -1, score_words: "" });

  // Of all images and their texts: samples are sorted by the largest.
  function documentFacts({ images }) {
    const labels = images.flatMap((image) => image.labels?.kept ?? []);
    const largest = labels.reduce((most, own) => (own.kept / own.all > most.kept / most.all ? own : most), labels[0]);
    const best = bestPhrase({ phrases: images.flatMap((image) => image.texts.flatMap((text) => text.phrases)) });
    return [largest && `share up to ${largest.share}`, best.score >= 0 && `best ${best.score_words}`].filter(Boolean).join(" · ");
  }

  function redraw(card) {
    const { sample, textNumber } = card;
    if (!sample) return;
    if (sample.sequence) {
      card.stage.show(patchmint.state);
      card.facts.textContent = documentFacts(sample);
      return;
    }
    card.stage.show(sample, textNumber, patchmint.state);
    card.element.href = patchmint.addressOf({ sample: card.position, text: textNumber });
    if (!sample.texts) return;
    const best = sample.texts.map(bestPhrase);
    card.place.textContent = `text ${textNumber + 1} of ${sample.texts.length}`;
    const facts = [];
    const kept = patchmint.keptCount(sample, textNumber);
    if (kept) facts.push(`${kept.kept}/${kept.all} kept${patchmint.ofFirstView(sample)}`);
    if (sample.labels) facts.push(`share ${ownWords(sample.labels.kept.map((k) => k.kept), sample.labels.kept.map((k) => k.share), textNumber)}`);
    if (best.some((phrase) => phrase.score >= 0)) facts.push(`best ${ownWords(best.map((p) => p.score), best.map((p) => p.score_words), textNumber)}`);
    if (sample.edits) facts.push(`${sample.edits} ${sample.edits === 1 ? "edit" : "edits"}`);
    if (sample.wrong) facts.push("wrong");
    card.facts.textContent = facts.join(" · ");
  }

  function render(positions) {
    const wanted = `${positions.join(",")} ${patchmint.state.query}`;
    if (wanted === drawn) return cards.forEach(redraw);
    drawn = wanted;
    const focused = grid().contains(document.activeElement) ? document.activeElement.dataset.position : null;
    for (const card of cards) card.stage.leave();
    cards = positions.map(build);
    grid().replaceChildren(...cards.map((card) => card.element));
    for (const card of cards) {
      card.element.href = patchmint.addressOf({ sample: card.position });
      if (String(card.position) === focused) card.element.focus();
      patchmint.store.sample(card.position).then(
        (sample) => { card.sample = sample; fill(card); },
        () => { card.key.textContent = "this sample's file is missing; make the gallery again"; },
      );
    }
    return undefined;
  }

  function move(step) {
    const focused = cards.findIndex((card) => card.element === document.activeElement);
    const target = focused < 0 ? 0 : focused + step;
    if (target < 0 || target >= cards.length) return false;
    cards[target].element.focus();
    return true;
  }

  return { render, move, columns, focus: (position) => cards.find((card) => card.position === position)?.element.focus() };
})();

// Of anyres the first view alone is drawn and ranked here, where a patch selector ranks the patches of all views.
patchmint.ofFirstView = (sample) =>
  (sample.grid.fit === "anyres" && patchmint.state.keep !== null ? " of the first view" : "");

// Kept patches and how many there are: as labelled of all views, as `inspect show` counts; else of the first view.
patchmint.keptCount = (sample, text) => {
  if (sample.labels && patchmint.state.keep === null) return sample.labels.kept[text];
  const patches = patchmint.draw.patchesOf(sample, text);
  if (!patches) return null;
  const kept = patchmint.draw.keptPatches(patches, patchmint.state.keep);
  return { kept: kept.reduce((sum, bit) => sum + bit, 0), all: kept.length };
};
