// The page: state in the address, three columns, keys.
"use strict";
(() => {
  const { html, START, PAGE, read, write, query, curved, same, key, filtered, Filters, List, Detail, Curves, Beside, count } = window.viewer;
  const { useState, useEffect, useRef, useCallback } = preactHooks;
  const source = window.viewer.source();
  const POLL_MS = 5000;

  const KEYS = [["j, ↓", "next rollout, over the end of a page too"], ["k, ↑", "previous rollout"], ["n, p", "next, previous page"], ["/", "search"],
    ["v", "completion, tokens, prompt in turn"], ["h", "reward hacks only, and back"], ["f", "forged verdicts only, and back"], ["x", "clear all filters"], ["y", "copy the link to this view"],
    ["t", "light or dark"], ["Esc", "leave the search, this help, the rollout"], ["?", "this help"]];

  // Shown as a modal dialog: the browser keeps the focus inside, closes it on Escape and gives the focus back.
  const Help = ({ close }) => {
    const dialog = useRef();
    useEffect(() => { dialog.current.showModal(); }, []);
    return html`<dialog ref=${dialog} class="help" aria-label="Keys" onClose=${close}><article><header><button type="button" class="close" aria-label="Close" onClick=${() => dialog.current.close()}>×</button><strong>Keys</strong></header>
    <table><tbody>${KEYS.map(([keys, text]) => html`<tr><td>${keys.split(", ").map((k) => html`<kbd>${k}</kbd> `)}</td><td>${text}</td></tr>`)}</tbody></table>
    <p><strong>Search</strong> looks in completions, problem ids and evidence. All words must occur; <code>"a phrase"</code>, <code>run_*</code> for the start of a word${source.live ? html`, <code>OR</code> and <code>NOT</code> in capitals` : ""}.</p></article></dialog>`;
  };

  const Status = ({ state }) => {
    if (!state) return null;
    const skipped = [[state.torn_members, "damaged part"], [state.bad_lines, "bad line"], [state.unfinished_files, "file still being written or cut short"]].filter(([n]) => n)
      .map(([n, what]) => `${count(n)} ${n === 1 ? what : what.replace(/^(file|\w+ part|\w+ line)/, "$1s")}`);
    const where = (state.where ?? []).map((f) => f.file).join("\n");
    return html`<span class="status" role="status">${state.error && html`<span class="warn" title=${state.error}>index: ${state.error}</span>`}
      ${state.scanning && state.files_done < state.files_found && html`<span aria-busy="true">indexing ${count(state.files_done)} of ${count(state.files_found)} files</span>`}
      ${skipped.length > 0 && html`<span class="warn skipped" title=${where}>skipped: ${skipped.join(", ")}</span>`}</span>`;
  };

  // The newest of several questions wins; what is shown stays until its successor is here.
  const useAnswer = (ask, deps) => {
    const [answer, put] = useState({ value: null, problem: null });
    const turn = useRef(0);
    const go = useCallback((quiet) => {
      const mine = ++turn.current;
      if (!quiet) put((old) => ({ ...old, problem: null }));
      Promise.resolve().then(ask).then((value) => mine === turn.current && put({ value, problem: null }),
        (error) => mine === turn.current && put({ value: null, problem: error.message }));
    }, deps);
    useEffect(() => go(false), deps);
    return [answer, go];
  };

  const theme = () => localStorage.getItem("viewer-theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  const paint = (name) => { document.documentElement.dataset.theme = name; };
  const safely = (what) => { try { return what(); } catch { return undefined; } }; // storage may be off

  const App = () => {
    const [state, put] = useState(() => read(location.hash));
    const [help, showHelp] = useState(false);
    const [folded, fold] = useState(true);
    const [health, tellHealth] = useState(null);
    const search = useRef();
    const wish = useRef(null); // after a page change: which row to open

    const set = useCallback((patch, kind = "filter") => put((old) => {
      const next = { ...old, ...patch };
      if (kind === "filter" && !("offset" in patch)) next.offset = 0;
      const hash = write(next);
      if (hash !== location.hash) history[kind === "filter" ? "pushState" : "replaceState"](null, "", hash);
      return next;
    }), []);
    useEffect(() => {
      const back = () => put(read(location.hash));
      addEventListener("popstate", back);
      addEventListener("hashchange", back);
      return () => { removeEventListener("popstate", back); removeEventListener("hashchange", back); };
    }, []);

    const asked = query(state).toString();
    const narrowed = query({ ...state, sort: START.sort, desc: false, offset: 0 }).toString();
    const [facets, facetsAgain] = useAnswer(() => source.facets(state), [narrowed]);
    const [curves, curvesAgain] = useAnswer(() => source.curves(state), [query(curved(state)).toString()]);
    const besideOf = state.beside ? JSON.stringify(state.beside) : "";
    const [beside, besideAgain] = useAnswer(() => (state.beside ? source.beside(state.beside) : null), [besideOf]);
    const [page, pageAgain] = useAnswer(() => source.page(state), [asked]);
    const place = state.at ? JSON.stringify(state.at) : "";
    const [from, turn] = useState({ place: "", token: 0 }); // which window of a long completion's tokens
    const token = from.place === place ? from.token : 0;
    const [one, oneAgain] = useAnswer(() => (state.at ? source.one(state.at, token) : null), [place, token]);
    const open = useCallback((at) => set({ at, beside: null }, "open"), []);
    const reset = () => { search.current.value = ""; set({ ...START, sort: state.sort, desc: state.desc, at: state.at, view: state.view }); };

    const step = (by) => {
      const rows = page.value?.rows ?? [];
      const at = rows.findIndex((row) => same(state.at, key(row)));
      const next = at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by;
      if (rows[next]) return open(key(rows[next]));
      const offset = state.offset + by * PAGE;
      if (!rows.length || offset < 0 || offset >= page.value.total) return undefined;
      wish.current = by > 0 ? "first" : "last";
      return set({ offset });
    };
    useEffect(() => {
      const rows = page.value?.rows ?? [];
      if (wish.current && rows.length && page.value.offset === state.offset) {
        open(key(wish.current === "first" ? rows[0] : rows[rows.length - 1]));
        wish.current = null;
      }
    }, [page.value]);

    useEffect(() => {
      if (!source.live) { source.state().then(tellHealth); return undefined; }
      let seen = null;
      const look = () => document.hidden || source.state().then((now) => {
        tellHealth(now);
        if (seen !== null && now.generation !== seen) { facetsAgain(true); pageAgain(true); curvesAgain(true); }
        seen = now.generation;
      }, (error) => tellHealth({ error: error.message }));
      look();
      const timer = setInterval(look, POLL_MS);
      return () => clearInterval(timer);
    }, [facetsAgain, pageAgain, curvesAgain]);

    const turnTheme = () => {
      const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      safely(() => localStorage.setItem("viewer-theme", next));
      paint(next);
    };
    const press = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target.closest?.("input[type=search], input[type=number], select, textarea");
      if (event.key === "Escape") {
        if (help) return; else if (typing) typing.blur(); else if (state.beside) set({ beside: null }, "open"); else if (state.at) set({ at: null }, "open");
        return;
      }
      if (typing || help) return;
      const views = ["code", "tokens", "prompt"];
      const does = {
        j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
        n: () => page.value && state.offset + PAGE < page.value.total && set({ offset: state.offset + PAGE }),
        p: () => state.offset > 0 && set({ offset: Math.max(0, state.offset - PAGE) }),
        "/": () => { search.current.focus(); search.current.select(); }, "?": () => showHelp(!help), x: reset, t: turnTheme,
        v: () => set({ view: views[(views.indexOf(state.view) + 1) % views.length] }, "view"),
        h: () => set({ label: state.label.length === 1 && state.label[0] === "Reward Hack" ? [] : ["Reward Hack"] }),
        f: () => set({ verdict: state.verdict === "forged" ? "" : "forged" }),
        y: () => document.querySelector("button[name=copy]")?.click(),
      }[event.key];
      if (does && !(event.key.startsWith("Arrow") && event.target.closest?.("pre, [role=tablist]"))) { event.preventDefault(); does(); }
    };
    const latest = useRef(press);
    latest.current = press;
    useEffect(() => {
      const listen = (event) => latest.current(event);
      addEventListener("keydown", listen);
      return () => removeEventListener("keydown", listen);
    }, []);

    const timer = useRef();
    const typed = (event) => {
      const q = event.target.value;
      clearTimeout(timer.current);
      timer.current = setTimeout(() => set({ q }), 250);
    };
    useEffect(() => { if (search.current !== document.activeElement) search.current.value = state.q; }, [state.q]);
    useEffect(() => { document.title = state.at ? `${state.at.group} · ${state.at.index} · Rollouts` : "Rollouts"; }, [place]);

    return html`<header class="bar"><h1 class="name">Rollouts</h1>
        <input ref=${search} type="search" name="q" placeholder="Search code, problems, evidence" aria-label="Search" aria-invalid=${page.problem && state.q ? "true" : undefined} onInput=${typed}
          onKeyDown=${(e) => { if (e.key === "Enter") { clearTimeout(timer.current); set({ q: e.target.value }); e.target.blur(); } }} />
        <${Status} state=${health} />
        <button type="button" class="outline fold" aria-expanded=${!folded} onClick=${() => fold(!folded)}>Filters${filtered(state) ? " •" : ""}</button>
        <button type="button" class="outline" name="clear" disabled=${!filtered(state)} onClick=${reset} title="x">Clear</button>
        <button type="button" class="outline" name="theme" onClick=${turnTheme} aria-label="Light or dark" title="t">◐</button>
        <button type="button" class="outline" name="help" onClick=${() => showHelp(!help)} aria-label="Keys" title="?">?</button></header>
      ${source.note && html`<p class="sample" role="note">${source.note}</p>`}
      ${state.beside ? html`<main class="comparing"><${Beside} answer=${beside} problem=${state.beside} source=${source} retry=${() => besideAgain()} close=${() => set({ beside: null }, "open")} open=${open} /></main>`
      : html`<main class=${`${state.at ? "reading" : ""} ${folded ? "folded" : ""}`}>
        <aside aria-label="Filters">${facets.value ? html`<${Filters} facets=${facets.value} state=${state} set=${set} />`
          : facets.problem ? html`<div class="message error" role="alert"><p>${facets.problem}</p><button type="button" onClick=${() => facetsAgain()}>Try again</button></div>` : html`<div class="message" aria-busy="true"></div>`}</aside>
        <${List} curves=${curves.value && html`<${Curves} curves=${curves.value} ...${{ state, set }} />`} page=${page.value} problem=${page.problem} total=${facets.value?.total ?? null} retry=${() => pageAgain()} ...${{ state, set, open, reset }} />
        <${Detail} row=${one.value && same(one.value, state.at) ? one.value : null} problem=${state.at && one.problem} retry=${() => oneAgain()} close=${() => set({ at: null }, "open")} turn=${source.live ? (number) => turn({ place, token: number }) : null} ...${{ state, set, open, step }} />
      </main>`}${help && html`<${Help} close=${() => showHelp(false)} />`}`;
  };

  if (["", "#"].includes(location.hash)) history.replaceState(null, "", write(read("")));
  paint(safely(theme) ?? "light");
  preact.render(html`<${App} />`, document.getElementById("app"));
})();
