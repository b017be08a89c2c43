"use strict";
// Data files call patchmint.receive; everything else asks patchmint.store for them. One script tag a file, at most once.
window.patchmint = (() => {
  const KEPT_SAMPLES = 240;
  const waiting = new Map(); // name -> { resolve, promise }
  const samples = new Map(); // name -> promise; the oldest goes first
  const numbers = { share: null, score: null };
  let meta = null;

  function receive(name, data) {
    const request = waiting.get(name);
    if (name === "data/meta") {
      meta = data;
      queueMicrotask(() => patchmint.start());
    } else if (request) {
      request.resolve(data);
    }
  }

  function load(name) {
    if (waiting.has(name)) return waiting.get(name).promise;
    const request = {};
    request.promise = new Promise((resolve, reject) => {
      const tag = document.createElement("script");
      const finish = (then) => (value) => {
        waiting.delete(name);
        tag.remove();
        then(value);
      };
      request.resolve = finish(resolve);
      tag.onerror = finish(() => reject(new Error(`${name} can't be read`)));
      // A script that ran without handing over its data is not ours.
      tag.onload = () => waiting.get(name) === request && tag.onerror();
      tag.src = `${name}.js`;
      waiting.set(name, request);
      document.head.append(tag);
    });
    return request.promise;
  }

  const six = (number) => String(number).padStart(6, "0");
  const fileOf = (kind, position) => `${kind}/${six(Math.floor(position / 1000))}/${six(position)}`;

  function sample(position) {
    const name = fileOf("samples", position);
    if (!samples.has(name)) {
      samples.set(name, load(name));
      samples.get(name).catch(() => samples.delete(name));
      if (samples.size > KEPT_SAMPLES) samples.delete(samples.keys().next().value);
    }
    return samples.get(name);
  }

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  function words(base64) {
    const low = bytes(base64);
    return Uint16Array.from({ length: low.length / 2 }, (_, i) => low[2 * i] | (low[2 * i + 1] << 8));
  }

  // Shares and scores of all samples, four bytes each; loaded once, when a filter or an order first needs them.
  async function allNumbers(progress, stopped) {
    if (numbers.share) return numbers;
    const share = new Uint16Array(meta.shown);
    const score = new Uint16Array(meta.shown);
    for (let start = 0; start < meta.shown; start += meta.index_chunk) {
      const chunk = await load(`data/index-${six(start / meta.index_chunk)}`);
      if (stopped()) return null;
      share.set(words(chunk.share), start);
      score.set(words(chunk.score), start);
      progress(Math.min(start + meta.index_chunk, meta.shown));
    }
    Object.assign(numbers, { share, score });
    return numbers;
  }

  return {
    receive,
    bytes,
    store: {
      get meta() { return meta; },
      sample,
      allNumbers,
      texts: (chunk) => load(`data/texts-${six(chunk)}`),
      picture: (position) => `${fileOf("pictures", position)}.jpg`,
      decoded: (position) => `${fileOf("decoded", position)}.jpg`,
      masks: (position, text) => `${fileOf("masks", position)}-${text}.png`,
    },
  };
})();
