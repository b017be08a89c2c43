"use strict";
// Overlays on a canvas of its own above the photo: the photo is never drawn on it, so that it can always be read back.
patchmint.draw = (() => {
  const MINT = "64 255 180";
  const DARK = "10 12 16";
  // Viridis at ten places (matplotlib's, CC0): even steps to the eye, also without colour vision.
  const VIRIDIS = [
    [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
    [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37],
  ];
  const HEAT_ALPHA = [0.55, 0.8]; // at no coverage and at full
  const MIN_LINED_CELL = 12; // narrower cells need no lines: they would hide the photo
  const MIN_LABELLED = 200;
  const MIN_ALL_LABELLED = 420; // on a smaller canvas the same words are written once

  function heatColour(share) {
    const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
    const mixed = VIRIDIS[low].map((value, i) => Math.round(value + (place - low) * (VIRIDIS[low + 1][i] - value)));
    return mixed.join(" ");
  }

  // Arrays of one text, unpacked once.
  function patchesOf(sample, text) {
    if (!sample.labels || !sample.grid || !sample.texts[text]) return null;
    sample.unpacked ??= [];
    if (!sample.unpacked[text]) {
      const cells = sample.grid.rows * sample.grid.cols;
      const part = (packed) => packed && patchmint.bytes(packed).subarray(text * cells, (text + 1) * cells);
      sample.unpacked[text] = { labelled: part(sample.labels.selector), coverage: part(sample.labels.coverage) };
    }
    return sample.unpacked[text];
  }

  // The best floor(keep % of n) patches by coverage, the first among equals; null keeps what the labels keep.
  function keptPatches(patches, keep) {
    if (keep === null) return patches.labelled;
    const level = patches.coverage ?? patches.labelled;
    const order = Array.from(level.keys()).sort((a, b) => level[b] - level[a] || a - b);
    const kept = new Uint8Array(level.length);
    for (const cell of order.slice(0, Math.floor((keep * level.length) / 100))) kept[cell] = 1;
    return kept;
  }

  function fit(canvas) {
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const { clientWidth, clientHeight } = canvas;
    canvas.width = Math.max(Math.round(clientWidth * ratio), 1);
    canvas.height = Math.max(Math.round(clientHeight * ratio), 1);
    return canvas.getContext("2d");
  }

  function overlay(canvas, sample, text, show, marked = -1) {
    const context = fit(canvas);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const patches = sample.grid?.x ? patchesOf(sample, text) : null;
    if (patches) {
      const scaled = (edges, length, side) => edges.map((edge) => Math.round((edge * length) / side));
      const frame = {
        x: scaled(sample.grid.x, canvas.width, sample.image.width),
        y: scaled(sample.grid.y, canvas.height, sample.image.height),
      };
      const kept = keptPatches(patches, show.keep);
      if (show.heat) heat(context, frame, patches.coverage ?? patches.labelled.map((bit) => 255 * bit));
      else if (show.patches) shade(context, frame, patches, kept);
      if (show.heat || show.patches) unseen(context, frame);
      if (show.patches) border(context, frame, kept);
    }
    if (show.boxes) boxes(context, sample, sample.texts[text]?.phrases ?? [], marked);
  }

  const scaleOf = (context) => context.canvas.width / Math.max(context.canvas.clientWidth, 1);

  function eachCell(frame, visit) {
    const rows = frame.y.length - 1;
    const cols = frame.x.length - 1;
    for (let row = 0; row < rows; row++) {
      for (let col = 0; col < cols; col++) {
        const rectangle = [frame.x[col], frame.y[row], frame.x[col + 1] - frame.x[col], frame.y[row + 1] - frame.y[row]];
        visit(row * cols + col, rectangle);
      }
    }
  }

  function heat(context, frame, coverage) {
    eachCell(frame, (cell, rectangle) => {
      const share = coverage[cell] / 255;
      context.fillStyle = `rgb(${heatColour(share)} / ${HEAT_ALPHA[0] + share * (HEAT_ALPHA[1] - HEAT_ALPHA[0])})`;
      context.fillRect(...rectangle);
    });
  }

  function shade(context, frame, patches, kept) {
    eachCell(frame, (cell, rectangle) => {
      const strength = patches.coverage ? patches.coverage[cell] / 255 : 0.6;
      context.fillStyle = kept[cell] ? `rgb(${MINT} / ${0.06 + 0.2 * strength})` : `rgb(${DARK} / 0.68)`;
      context.fillRect(...rectangle);
    });
    const cell = (frame.x.at(-1) - frame.x[0]) / (frame.x.length - 1);
    if (cell / scaleOf(context) < MIN_LINED_CELL) return;
    context.fillStyle = "rgb(160 170 180 / 0.16)";
    const [left, right, top, bottom] = [frame.x[0], frame.x.at(-1), frame.y[0], frame.y.at(-1)];
    for (const x of frame.x) context.fillRect(x, top, 1, bottom - top);
    for (const y of frame.y) context.fillRect(left, y, right - left, 1);
  }

  function border(context, frame, kept) {
    const cols = frame.x.length - 1;
    const rows = frame.y.length - 1;
    const is = (row, col) => row >= 0 && col >= 0 && row < rows && col < cols && kept[row * cols + col] === 1;
    const thick = Math.max(Math.round(context.canvas.width / 260), 1);
    context.fillStyle = `rgb(${MINT})`;
    eachCell(frame, (cell, [x, y, width, height]) => {
      const [row, col] = [Math.floor(cell / cols), cell % cols];
      if (!is(row, col)) return;
      if (!is(row - 1, col)) context.fillRect(x, y, width, thick);
      if (!is(row + 1, col)) context.fillRect(x, y + height - thick, width, thick);
      if (!is(row, col - 1)) context.fillRect(x, y, thick, height);
      if (!is(row, col + 1)) context.fillRect(x + width - thick, y, thick, height);
    });
  }

  // What lies outside the grid: the encoder never sees it.
  function unseen(context, frame) {
    const { width, height } = context.canvas;
    const [left, right] = [frame.x[0], frame.x.at(-1)].map((x) => Math.min(Math.max(x, 0), width));
    const [top, bottom] = [frame.y[0], frame.y.at(-1)].map((y) => Math.min(Math.max(y, 0), height));
    const parts = [[0, 0, width, top], [0, bottom, width, height - bottom], [0, top, left, bottom - top], [right, top, width - right, bottom - top]];
    for (const [x, y, w, h] of parts) {
      if (w < 1 || h < 1) continue;
      context.save();
      context.beginPath();
      context.rect(x, y, w, h);
      context.clip();
      context.fillStyle = `rgb(${DARK} / 0.8)`;
      context.fillRect(x, y, w, h);
      context.strokeStyle = "rgb(160 170 180 / 0.35)";
      context.lineWidth = 2;
      context.beginPath();
      for (let start = -h; start < w; start += 10) {
        context.moveTo(x + start, y + h);
        context.lineTo(x + start + h, y);
      }
      context.stroke();
      context.restore();
    }
  }

  function boxes(context, sample, phrases, marked) {
    const { width, height } = context.canvas;
    const ratio = scaleOf(context);
    const line = Math.max(2 * ratio, 2);
    const places = phrases.map((phrase) => {
      const [x0, y0, x1, y1] = phrase.box;
      const across = width / sample.image.width;
      const down = height / sample.image.height;
      return [x0 * across, y0 * down, (x1 - x0) * across, (y1 - y0) * down];
    });
    // The best phrases come first, and are drawn last.
    for (let i = phrases.length - 1; i >= 0; i--) {
      const faded = marked >= 0 && marked !== i;
      context.globalAlpha = faded ? 0.25 : 1;
      const colour = patchmint.store.meta.palette[phrases[i].colour];
      context.lineWidth = (marked === i ? 2 : 1) * line + 2 * ratio;
      context.strokeStyle = `rgb(${DARK} / 0.75)`;
      context.strokeRect(...places[i]);
      context.lineWidth = (marked === i ? 2 : 1) * line;
      context.strokeStyle = colour;
      context.setLineDash(phrases[i].origin !== "model" ? [8 * ratio, 5 * ratio] : []);
      context.strokeRect(...places[i]);
      context.setLineDash([]);
    }
    context.globalAlpha = 1;
    if (width / ratio >= MIN_LABELLED || marked >= 0) labels(context, phrases, places, marked, ratio);
  }

  // As many labels as find a free place, the best first; the marked one always.
  function labels(context, phrases, places, marked, ratio) {
    const size = Math.round(Math.min(Math.max(context.canvas.width / ratio / 30, 11), 15) * ratio);
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    const height = size + 5 * ratio;
    const taken = [];
    const once = context.canvas.width / ratio < MIN_ALL_LABELLED;
    const first = (i) => phrases.findIndex((phrase) => phrase.words === phrases[i].words) === i;
    const order = marked >= 0 ? [marked] : phrases.map((_, i) => i).filter((i) => !once || first(i));
    for (const i of order) {
      const phrase = phrases[i];
      const score = phrase.score_words && ` ${phrase.score_words}`;
      const words = phrase.words.length > 28 ? `${Array.from(phrase.words).slice(0, 27).join("")}…` : phrase.words;
      const label = words.replace(/\s+/g, " ") + score;
      const width = Math.min(context.measureText(label).width + 8 * ratio, context.canvas.width);
      const [x, y, , tall] = places[i];
      const left = Math.min(Math.max(x, 0), context.canvas.width - width);
      const free = [y - height, y, y + tall - height, y + tall].find(
        (top) => top >= 0 && top + height <= context.canvas.height &&
          !taken.some((t) => left < t[0] + t[2] && t[0] < left + width && top < t[1] + height && t[1] < top + height),
      );
      if (free === undefined) continue;
      taken.push([left, free, width, height]);
      const colour = patchmint.store.meta.palette[phrase.colour];
      context.fillStyle = colour;
      context.fillRect(left, free, width, height);
      context.fillStyle = inkOn(colour);
      context.fillText(label, left + 4 * ratio, free + height / 2 + ratio, width - 8 * ratio);
    }
  }

  // Black or white, whichever stands out more.
  function inkOn(colour) {
    const [red, green, blue] = colour.match(/\d+/g).map(Number);
    return 0.299 * red + 0.587 * green + 0.114 * blue > 110 ? "#000" : "#fff";
  }

  function legend(canvas) {
    const context = canvas.getContext("2d");
    for (let x = 0; x < canvas.width; x++) {
      context.fillStyle = `rgb(${heatColour(x / (canvas.width - 1))})`;
      context.fillRect(x, 0, 1, canvas.height);
    }
  }

  return { overlay, patchesOf, keptPatches, inkOn, legend };
})();
