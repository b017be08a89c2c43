"use strict";
// The page: its state is its address, so that whatever is seen can be linked to.
(() => {
  const SWITCHES = ["boxes", "patches", "heat", "masks", "decoded"];
  const DEFAULT_SHOWN = patchmint.edit ? ["boxes", "masks"] : ["boxes", "patches"];
  const SIZES = [24, 36, 60];
  const SORTS = ["", "share", "share-", "score", "score-"];
  const THEMES = ["", "light", "dark"];
  const byId = (id) => document.getElementById(id);
  const { el } = patchmint;
  let found = ""; // the filter that the finder was last asked for
  let typing = 0;

  function parse(hash) {
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    const number = (name, low, high, otherwise) => {
      const text = given.get(name);
      return /^\d+$/.test(text ?? "") && Number(text) >= low && Number(text) <= high ? Number(text) : otherwise;
    };
    const range = (name) => {
      const parts = (given.get(name) ?? "").split("-").map(Number);
      return parts.length === 2 && parts.every((n) => n >= 0 && n <= 100) ? parts : null;
    };
    const oneOf = (name, choices) => (choices.includes(given.get(name)) ? given.get(name) : choices[0]);
    const shown = given.has("show") ? given.get("show").split(",") : DEFAULT_SHOWN;
    return {
      page: number("page", 1, Infinity, 1),
      per: SIZES.includes(number("per", 1, 60, 24)) ? number("per", 1, 60, 24) : 24,
      query: (given.get("q") ?? "").trim(),
      share: range("share"),
      score: range("score"),
      sort: oneOf("sort", SORTS),
      keep: number("keep", 0, 100, null),
      sample: number("sample", 0, patchmint.store.meta.shown - 1, null),
      image: number("image", 0, 9999, 0),
      text: number("text", 0, 9999, 0),
      theme: oneOf("theme", THEMES),
      ...Object.fromEntries(SWITCHES.map((name) => [name, shown.includes(name) && possible(name)])),
    };
  }

  const possible = (name) => patchmint.store.meta[name]?.available ?? true;

  function addressOf(changes) {
    const state = { ...patchmint.state, ...changes };
    const shown = SWITCHES.filter((name) => state[name]);
    const parts = new URLSearchParams();
    const put = (name, value, otherwise) => value !== otherwise && value !== null && parts.set(name, value);
    put("page", state.page, 1);
    put("per", state.per, 24);
    put("q", state.query, "");
    put("share", state.share?.join("-") ?? null, null);
    put("score", state.score?.join("-") ?? null, null);
    put("sort", state.sort, "");
    put("keep", state.keep, null);
    put("show", shown.join(","), DEFAULT_SHOWN.join(","));
    put("theme", state.theme, "");
    put("sample", state.sample, null);
    if (state.sample !== null) {
      put("image", state.image, 0);
      put("text", state.text, 0);
    }
    return `#${parts}`;
  }

  // Small changes replace the address; `push` makes a step that the browser's back button undoes.
  function set(changes, push = false) {
    const address = addressOf(changes);
    if (push) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
    render();
  }

  function render() {
    const state = parse(location.hash);
    patchmint.state = state;
    document.documentElement.dataset.theme = state.theme;
    controls(state);
    const filter = { query: state.query, share: state.share, score: state.score, sort: state.sort };
    const wanted = JSON.stringify(filter);
    if (wanted !== found) {
      found = wanted;
      patchmint.finder.find(filter, renderCards);
    } else {
      renderCards();
    }
    if (state.sample === null) patchmint.detail.close();
    else patchmint.detail.show(state.sample);
  }

  function controls(state) {
    for (const button of document.querySelectorAll("[data-switch]")) {
      button.setAttribute("aria-pressed", String(state[button.dataset.switch]));
    }
    byId("keep-on").checked = state.keep !== null;
    byId("keep").disabled = state.keep === null;
    if (state.keep !== null) byId("keep").value = state.keep;
    byId("keep-value").textContent = state.keep === null ? "as labelled" : `${state.keep} % by coverage`;
    byId("legend").hidden = !state.heat;
    const fields = { "share-from": state.share?.[0], "share-to": state.share?.[1], "score-from": state.score?.[0], "score-to": state.score?.[1] };
    for (const [id, value] of Object.entries(fields)) if (document.activeElement !== byId(id)) byId(id).value = value ?? "";
    if (document.activeElement !== byId("query")) byId("query").value = state.query;
    byId("sort").value = state.sort;
    byId("per").value = state.per;
    const active = [state.query && `“${state.query}”`, state.share && `share ${state.share.join("–")} %`, state.score && `score ${state.score.join("–")} %`,
      state.sort && byId("sort").selectedOptions[0].textContent].filter(Boolean);
    byId("filter-summary").textContent = active.join(" · ");
  }

  function pages() {
    return Math.max(Math.ceil(patchmint.finder.total() / patchmint.state.per), 1);
  }

  function renderCards() {
    const { finder, state } = patchmint;
    if (!finder.ready) return;
    const total = finder.total();
    const page = Math.min(state.page, pages());
    const first = (page - 1) * state.per;
    const shown = Array.from({ length: Math.max(Math.min(state.per, total - first), 0) }, (_, i) => finder.at(first + i));
    patchmint.cards.render(shown);
    const range = shown.length ? `${finder.count(first + 1)}–${finder.count(first + shown.length)} of ` : "";
    const narrowed = state.query || state.share || state.score;
    const words = narrowed ? `${finder.count(total)} ${total === 1 ? "hit" : "hits"}` : `${finder.count(total)} samples`;
    byId("hits").textContent = [finder.failed, !finder.stale && (total > shown.length ? range + words : words), finder.progress].filter(Boolean).join(" · ");
    document.querySelector("main").setAttribute("aria-busy", String(Boolean(finder.progress)));
    for (const pager of document.querySelectorAll(".pager")) renderPager(pager, page);
  }

  function renderPager(pager, page) {
    const last = pages();
    pager.hidden = last < 2;
    if (!pager.children.length) {
      const step = (label, text, target) => {
        const button = el("button", "", text);
        button.type = "button";
        button.setAttribute("aria-label", label);
        button.addEventListener("click", () => turn(target));
        return button;
      };
      const box = el("label", "page-box", "page ");
      const input = el("input");
      Object.assign(input, { type: "number", min: 1 });
      input.setAttribute("aria-label", "Page");
      input.addEventListener("change", () => turn(() => Math.round(Number(input.value)) || 1));
      box.append(input, el("span"));
      pager.append(
        step("First page", "«", () => 1), step("Previous page", "‹", () => patchmint.state.page - 1), box,
        step("Next page", "›", () => patchmint.state.page + 1), step("Last page", "»", pages),
      );
    }
    const input = pager.querySelector("input");
    input.max = last;
    if (document.activeElement !== input) input.value = page;
    pager.querySelector("span").textContent = ` of ${patchmint.finder.count(last)}`;
    pager.querySelectorAll("button").forEach((button, i) => { button.disabled = i < 2 ? page <= 1 : page >= last; });
  }

  function turn(target) {
    const page = Math.min(Math.max(target(), 1), pages());
    if (page === patchmint.state.page) return;
    set({ page }, true);
    byId("cards").scrollIntoView({ block: "nearest" });
    window.scrollTo({ top: 0 });
  }

  function step(direction) {
    const { finder, state } = patchmint;
    const place = finder.placeOf(state.sample) + direction;
    if (place < 0 || place >= finder.total()) return;
    set({ sample: finder.at(place), image: 0, text: 0, page: Math.floor(place / state.per) + 1 });
  }

  function toggle(name) {
    if (possible(name)) set({ [name]: !patchmint.state[name] });
  }

  function keyboard(event) {
    if (event.altKey || byId("help").open) return;
    const key = event.ctrlKey || event.metaKey ? `Ctrl+${event.key}` : event.key;
    const field = event.target.closest?.("input, select, textarea");
    if (field && field.type !== "checkbox" && field.type !== "range") {
      if (event.key === "Escape") field.blur();
      return;
    }
    const ranged = field?.type === "range" && event.key.startsWith("Arrow");
    const actions = patchmint.state.sample === null ? gridKeys() : detailKeys();
    const action = ranged ? null : (patchmint.edit?.keys()[key] ?? actions[key] ?? commonKeys()[key]);
    if (action && action(event) !== false) event.preventDefault();
  }

  const commonKeys = () => ({
    b: () => toggle("boxes"), p: () => toggle("patches"), h: () => toggle("heat"), m: () => toggle("masks"), d: () => toggle("decoded"),
    "?": () => byId("help").showModal(),
  });

  const gridKeys = () => ({
    ArrowLeft: () => patchmint.cards.move(-1), k: () => patchmint.cards.move(-1),
    ArrowRight: () => patchmint.cards.move(1), j: () => patchmint.cards.move(1),
    ArrowUp: () => cardFocused() && patchmint.cards.move(-patchmint.cards.columns()),
    ArrowDown: () => cardFocused() && patchmint.cards.move(patchmint.cards.columns()),
    "[": () => turn(() => patchmint.state.page - 1), "]": () => turn(() => patchmint.state.page + 1),
    "/": () => { byId("filters").open = true; byId("query").focus(); },
  });

  const detailKeys = () => ({
    ArrowLeft: () => step(-1), k: () => step(-1), ArrowRight: () => step(1), j: () => step(1),
    ArrowUp: () => patchmint.detail.stepText(-1), ArrowDown: () => patchmint.detail.stepText(1),
    "[": () => patchmint.detail.stepImage(-1), "]": () => patchmint.detail.stepImage(1),
  });

  // Without a card in focus the arrows scroll, as everywhere.
  const cardFocused = () => document.activeElement?.classList.contains("card") ?? false;

  function listen() {
    for (const button of document.querySelectorAll("[data-switch]")) {
      button.addEventListener("click", () => toggle(button.dataset.switch));
    }
    byId("keep-on").addEventListener("change", (event) => set({ keep: event.target.checked ? Number(byId("keep").value) : null, patches: true }));
    byId("keep").addEventListener("input", (event) => set({ keep: Number(event.target.value) }));
    byId("theme").addEventListener("click", () => {
      const dark = patchmint.state.theme ? patchmint.state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      set({ theme: dark ? "light" : "dark" });
    });
    byId("help-open").addEventListener("click", () => byId("help").showModal());
    byId("help").querySelector(".close").addEventListener("click", () => byId("help").close());
    byId("detail").addEventListener("close", () => {
      // This event comes a moment after the closing: another sample may be open by then, or its address set.
      const position = patchmint.state.sample;
      if (position === null || byId("detail").open || parse(location.hash).sample !== position) return;
      set({ sample: null, image: 0, text: 0 });
      patchmint.cards.focus(position);
    });
    byId("detail").addEventListener("click", (event) => event.target === byId("detail") && byId("detail").close());
    byId("query").addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => set({ query: byId("query").value.trim(), page: 1 }), 200);
    });
    for (const name of ["share", "score"]) {
      for (const end of ["from", "to"]) byId(`${name}-${end}`).addEventListener("change", () => set({ [name]: typedRange(name), page: 1 }));
    }
    byId("sort").addEventListener("change", (event) => set({ sort: event.target.value, page: 1 }));
    byId("per").addEventListener("change", (event) => set({ per: Number(event.target.value), page: 1 }));
    byId("reset").addEventListener("click", () => set({ query: "", share: null, score: null, sort: "", page: 1 }));
    byId("form").addEventListener("submit", (event) => event.preventDefault());
    byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("cards").focus(); });
    document.addEventListener("keydown", keyboard);
    window.addEventListener("hashchange", render);
    window.addEventListener("popstate", render);
  }

  function typedRange(name) {
    const value = (end, otherwise) => {
      const field = byId(`${name}-${end}`);
      return field.value === "" || !field.validity.valid ? otherwise : Number(field.value);
    };
    const [from, to] = [value("from", 0), value("to", 100)];
    return from === 0 && to === 100 && !byId(`${name}-from`).value && !byId(`${name}-to`).value ? null : [from, to];
  }

  function heading(meta) {
    const { count } = patchmint.finder;
    byId("name").textContent = meta.name;
    document.title = `${meta.name} · patchmint gallery`;
    const all = `${count(meta.samples)} ${meta.samples === 1 ? "sample" : "samples"} in ${count(meta.shards)} ${meta.shards === 1 ? "shard" : "shards"}`;
    byId("count").textContent = meta.shown === meta.samples ? all : `${count(meta.shown)} of ${all}, evenly spread`;
    byId("notice").textContent = meta.notice;
    byId("notice").hidden = !meta.notice;
    byId("state").textContent = meta.unbuilt ? `This build isn't finished: ${count(meta.unbuilt)} of its units aren't done yet.` : "";
    byId("state").hidden = !meta.unbuilt;
    for (const name of ["masks", "decoded"]) {
      const button = document.querySelector(`[data-switch="${name}"]`);
      // Not `disabled`: its tooltip, which says why, must still be reached.
      button.setAttribute("aria-disabled", String(!meta[name].available));
      button.title = meta[name].available ? meta[name].remark : `Not possible: ${meta[name].remark}`;
      button.setAttribute("aria-description", button.title);
    }
    const remarks = ["masks", "decoded"].filter((name) => meta[name].remark).map((name) => `${name}: ${meta[name].remark}`);
    byId("footer").textContent = [`patchmint ${meta.version}`, meta.min_coverage === null ? "" : `a patch is kept above ${patchmint.percent(meta.min_coverage)} coverage`,
      meta.rejected ? `${count(meta.rejected)} samples were rejected and are in no shard` : "", ...remarks].filter(Boolean).join(" · ");
    patchmint.draw.legend(byId("legend-bar"));
  }

  Object.assign(patchmint, {
    state: null, set, step, addressOf,
    start: () => {
      byId("filters").open = matchMedia("(min-width: 900px)").matches;
      heading(patchmint.store.meta);
      listen();
      patchmint.edit?.start();
      render();
    },
  });
})();
