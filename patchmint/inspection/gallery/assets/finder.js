"use strict";
// Which samples are shown, in which order. Texts are looked through chunk by chunk and let go again.
patchmint.finder = (() => {
  let run = 0;
  let result = null; // { order: positions, or null for all of them as they stand; progress: "" when done; stale; failed }

  const total = () => (result.order ? result.order.length : patchmint.store.meta.shown);
  const at = (place) => (result.order ? result.order[place] : place);
  const placeOf = (position) => (result.order ? result.order.indexOf(position) : position);
  const count = (number) => number.toLocaleString("en");

  async function find(filter, changed) {
    const own = ++run;
    const stopped = () => own !== run;
    const tell = (order, progress, failed = "") => {
      if (stopped()) return;
      result = { order, progress, failed, stale: false };
      changed();
    };
    // What was shown before stays until there is something to show.
    const wait = (progress) => {
      if (stopped()) return;
      result = { order: result ? result.order : [], progress, failed: "", stale: true };
      changed();
    };
    const byNumbers = filter.share || filter.score || filter.sort;
    if (!byNumbers && !filter.query) return tell(null, "");
    wait("searching");
    try {
      const order = await candidates(filter, byNumbers, wait, stopped);
      if (!order || stopped()) return undefined;
      return filter.query ? await search(filter, order, { tell, wait, stopped }) : tell(order, "");
    } catch (error) {
      return tell([], "", `The search stopped: ${error.message}.`);
    }
  }

  async function candidates(filter, byNumbers, wait, stopped) {
    const { shown, none, scale } = patchmint.store.meta;
    const all = Array.from({ length: shown }, (_, position) => position);
    if (!byNumbers) return all;
    const numbers = await patchmint.store.allNumbers(
      (done) => wait(`reading the numbers of ${count(done)} of ${count(shown)} samples`), stopped,
    );
    if (!numbers) return null;
    const within = (range) => {
      const [from, to] = range.map((percent) => Math.round((percent * scale) / 100));
      return (value) => value !== none && value >= from && value <= to;
    };
    const byShare = filter.share && within(filter.share);
    const byScore = filter.score && within(filter.score);
    const { shares, starts, score } = numbers;
    // As `inspect find`: the share of some text, the best score.
    const left = all.filter((position) => (!byScore || byScore(score[position])) &&
      (!byShare || shares.subarray(starts[position], starts[position + 1]).some(byShare)));
    return filter.sort ? left.sort(comparison(filter.sort, numbers, none)) : left;
  }

  // Samples without the number come last either way; equals stand by position.
  function comparison(sort, numbers, none) {
    const values = numbers[sort.replace("-", "")];
    const sign = sort.endsWith("-") ? -1 : 1;
    return (a, b) => (values[a] === none) - (values[b] === none) || sign * (values[a] - values[b]) || a - b;
  }

  async function search(filter, order, { tell, wait, stopped }) {
    const { shown, texts_chunk: length } = patchmint.store.meta;
    const wanted = filter.query.toLowerCase();
    const rank = new Int32Array(shown).fill(-1);
    order.forEach((position, place) => { rank[position] = place; });
    const chunks = [...new Set(order.map((position) => Math.floor(position / length)))].sort((a, b) => a - b);
    const hits = [];
    const inOrder = () => (filter.sort ? hits.sort((a, b) => rank[a] - rank[b]) : hits);
    for (const [done, chunk] of chunks.entries()) {
      const { keys, texts } = await patchmint.store.texts(chunk);
      if (stopped()) return;
      keys.forEach((key, i) => {
        const position = chunk * length + i;
        if (rank[position] >= 0 && [key, ...texts[i]].some((text) => text.toLowerCase().includes(wanted))) hits.push(position);
      });
      const searched = `searched ${count(Math.min((done + 1) * length, shown))} of ${count(shown)} samples`;
      if (hits.length) tell(inOrder(), searched);
      else wait(searched);
    }
    tell(inOrder(), "");
  }

  return {
    find, total, at, placeOf, count,
    get progress() { return result?.progress ?? ""; },
    get stale() { return result?.stale ?? false; },
    get failed() { return result?.failed ?? ""; },
    get ready() { return result !== null; },
  };
})();
