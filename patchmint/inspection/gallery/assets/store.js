"use strict";
// Data files call patchmint.receive; everything else asks patchmint.store for them. One script tag a file, at most once.
window.patchmint = (() => {
  const KEPT_SAMPLES = 240;
  const waiting = new Map(); // name -> { resolve, promise }
  const samples = new Map(); // name -> promise; the oldest goes first
  const numbers = { share: null, score: null, shares: null, starts: null };
  let meta = null;
  let versions = 0;

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
  const fileOf = (kind, ...numbers) => `${kind}/${six(Math.floor(numbers[0] / 1000))}/${[six(numbers[0]), ...numbers.slice(1)].join("-")}`;

  function sample(position) {
    const name = fileOf("samples", position);
    if (!samples.has(name)) {
      samples.set(name, load(name).then((read) => withImages(read, position)));
      samples.get(name).catch(() => samples.delete(name));
      if (samples.size > KEPT_SAMPLES) samples.delete(samples.keys().next().value);
    }
    return samples.get(name);
  }

  // What a sample has become by an edit. Cards and the large view hold the object itself.
  async function replace(position, read) {
    const own = await sample(position);
    for (const name of Object.keys(own)) delete own[name];
    Object.assign(own, read, { version: ++versions });
    withImages(own, position);
  }

  // A picture is its own only image. `place` is what the names of an image's files have.
  function withImages(read, position) {
    read.place = [position];
    read.images ??= [read];
    if (read.sequence) read.images.forEach((image, number) => Object.assign(image, { place: [position, number], version: read.version }));
    return read;
  }

  function bytes(base64) {
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  function words(base64) {
    const low = bytes(base64);
    return Uint16Array.from({ length: low.length / 2 }, (_, i) => low[2 * i] | (low[2 * i + 1] << 8));
  }

  // Of all samples, a few bytes each; loaded once, when a filter or an order first needs them. `shares` has those of a
  // sample's texts, ascending, from `starts[position]` to before the next one's; `share` is its largest.
  async function allNumbers(progress, stopped) {
    if (numbers.share) return numbers;
    const share = new Uint16Array(meta.shown);
    const score = new Uint16Array(meta.shown);
    const starts = new Uint32Array(meta.shown + 1);
    const parts = [];
    for (let start = 0; start < meta.shown; start += meta.index_chunk) {
      const chunk = await load(`data/index-${six(start / meta.index_chunk)}`);
      if (stopped()) return null;
      score.set(words(chunk.score), start);
      const own = words(chunk.shares);
      let end = 0;
      words(chunk.counts).forEach((count, row) => {
        end += count;
        starts[start + row + 1] = starts[start] + end;
        share[start + row] = count ? own[end - 1] : meta.none;
      });
      parts.push(own);
      progress(Math.min(start + meta.index_chunk, meta.shown));
    }
    const shares = new Uint16Array(starts[meta.shown]);
    parts.reduce((place, own) => { shares.set(own, place); return place + own.length; }, 0);
    Object.assign(numbers, { share, score, shares, starts });
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
      picture: (image) => `${fileOf("pictures", ...image.place)}.jpg`,
      decoded: (image) => `${fileOf("decoded", ...image.place)}.jpg`,
      masks: (image, text) => `${fileOf("masks", ...image.place, text)}.png${image.version ? `?${image.version}` : ""}`,
      replace,
      doubts: () => load("data/doubts"),
    },
  };
})();
