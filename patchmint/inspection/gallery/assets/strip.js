"use strict";
// A document as a strip: its texts and images in their order, each image with its labels.
// `images` and `characters`: of both so many at most; `choose` is told the number of an image that is clicked.
patchmint.makeStrip = (sample, images, characters, choose = null) => {
  const { el } = patchmint;
  const element = el("div", "strip");
  element.dataset.images = sample.images.length;
  const shown = []; // { number, stage, element }
  let current = null;

  function text(part) {
    const box = el("p", "strip-text");
    box.dir = "auto";
    if (part.role) box.append(el("b", "strip-role", part.role), " ");
    if (patchmint.fillText(box, [[part.text.trim(), -1]], characters)) box.append("…");
    return box;
  }

  function image(part) {
    if (part.role) element.append(text({ role: part.role, text: "" }));
    const box = el(choose ? "button" : "span", "strip-image");
    const stage = patchmint.makeStage();
    const name = `image ${part.image + 1}`;
    box.append(stage.element, el("span", "stage-name", choose ? name : String(part.image + 1)));
    if (choose) {
      box.type = "button";
      box.setAttribute("aria-label", `Show ${name}`);
      box.addEventListener("click", () => choose(part.image));
    }
    shown.push({ number: part.image, stage, element: box });
    return box;
  }

  // The whole is drawn as far as it is seen: a document may have hundreds of images.
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const own = shown.find((each) => each.element === target);
      own.visible = isIntersecting;
      if (isIntersecting) draw(own);
    }
  }, { root: element, rootMargin: "0px 400px" });

  function draw({ number, stage, visible }) {
    const own = sample.images[number];
    if (visible && current) stage.show(own, patchmint.placeOf(own, current.text), { ...current, decoded: false });
  }

  function show(state, chosen = null) {
    current = state;
    for (const each of shown) {
      if (choose) each.element.setAttribute("aria-pressed", String(each.number === chosen));
      draw(each);
    }
    const first = shown.find((each) => each.number === chosen);
    if (first && chosen !== element.chosen) element.scrollTo({ left: first.element.offsetLeft - element.clientWidth / 3 });
    element.chosen = chosen;
  }

  for (const part of sample.sequence) {
    if (part.image >= 0 && shown.length === images) break;
    if (part.image >= 0) element.append(image(part));
    else if (part.role || part.text.trim()) element.append(text(part));
  }
  const left = sample.images.length - new Set(shown.map((each) => each.number)).size;
  if (left) element.append(el("p", "strip-text", `${left} more ${left === 1 ? "image" : "images"}`));
  for (const { element: box, number } of shown) {
    const { width, height } = sample.images[number].image;
    box.style.setProperty("--ratio", Math.min(Math.max(width / height, 1 / 3), 3));
    seen.observe(box);
  }
  return { element, show, leave: () => { seen.disconnect(); shown.forEach((each) => each.stage.leave()); } };
};
