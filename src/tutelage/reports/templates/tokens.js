// The per-token view. Texts of models become text nodes, never markup; only answers in sight are
// in the document. How the bytes of an answer are laid out: tutelage/reports/tokens.py, `_rollout`.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data-tokens").textContent);
  const at = (id) => document.getElementById("tv-" + id);
  const { signals, rollouts, glossary, questions, views } = data;
  const ABSENT = 255, STEPS = 11, CELLS = 90, RANKED = 500, UNDERLINED = 20, LONG = 150, TINY = Math.log(1e-5);
  const TEXT = 0, SPECIAL = 1;
  const state = { signal: 0, view: 0, beside: null, filter: "all" };
  let rows = []; // of the list: { element, sides: [rollout, rollout or undefined] }
  let active = null; // the chosen token: { rollout, place, text }
  let ranking = null, rank = -1; // the worst tokens of what is shown, worst first

  // --- elements -----------------------------------------------------------------------------

  function make(tag, className, ...children) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  }

  function option(value, text) {
    const element = make("option", "", text);
    element.value = value;
    return element;
  }

  const decimals = (v) => (v === 0 ? "0" : Math.abs(v) >= 100 ? v.toFixed(0) : Math.abs(v) >= 0.001
    ? String(Number(v.toPrecision(3))) : v.toExponential(1)).replace("-", "−");
  // A probability: to a tenth of a per cent where it is exact, whole per cents where it is not.
  const percent = ({ logp, exact }) => {
    const p = 100 * Math.exp(logp);
    if (p < 0.001) return "< 0.001 %";
    if (p < 10) return Number(p.toPrecision(2)) + " %";
    return exact && p > 99.95 && logp < 0 ? "> 99.9 %" : p.toFixed(exact ? 1 : 0) + " %";
  };

  // --- reading ------------------------------------------------------------------------------

  // Two letters are 13 bits.
  function bytesOf(text) {
    const digit = new Uint8Array(128), bytes = new Uint8Array((text.length * 13) >> 4);
    Array.from(data.letters, (letter, i) => { digit[letter.charCodeAt(0)] = i; });
    let bits = 0, held = 0, next = 0;
    for (let i = 0; i < text.length; i += 2) {
      bits = (bits << 13) | (digit[text.charCodeAt(i)] * data.letters.length + digit[text.charCodeAt(i + 1)]);
      for (held += 13; held >= 8; held -= 8) bytes[next++] = bits >> (held - 8);
      bits &= (1 << held) - 1;
    }
    return bytes;
  }

  async function inflate(rollout) {
    const packed = bytesOf(rollout.data).subarray(0, rollout.bytes);
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function reader(bytes) {
    let next = 0;
    const take = (count) => bytes.subarray(next, (next += count));
    const ids = (count, width) => {
      const found = new Uint32Array(count);
      for (let plane = 0; plane < width; plane++) {
        take(count).forEach((byte, i) => { found[i] |= byte << (8 * plane); });
      }
      return found;
    };
    // Differences from rank to rank become codes again.
    const codes = (count, ranks) => {
      const columns = [];
      for (let r = 0; r < ranks; r++) {
        const column = Uint8Array.from(take(count));
        if (r) columns[r - 1].forEach((before, i) => { column[i] += before; });
        columns.push(column);
      }
      return columns;
    };
    return { take, ids, codes };
  }

  // Both sides' lists at `count` states, by rank: ids and log-probabilities.
  function readLists(from, count, k, l, fine) {
    // Log-probabilities of the worst tokens have two bytes, the others one.
    const logprobs = (ranks) => (fine
      ? Array.from({ length: ranks }, () => Array.from(from.ids(count, 2),
        (c) => (c === 65535 ? NaN : (-data.floor * c) / 65534)))
      : from.codes(count, ranks).map((column) => Array.from(column,
        (c) => (c === ABSENT ? NaN : -data.floor * (c / 254) ** 2))));
    const student = [];
    for (let r = 0; r < k; r++) student.push(from.ids(count, data.width));
    const studentLogps = logprobs(k);
    const places = [];
    for (let r = 0; r < l; r++) places.push(from.take(count));
    const news = places.reduce((sum, p) => sum + p.filter((x) => x === ABSENT).length, 0);
    const fresh = from.ids(news, data.width);
    let used = 0;
    const teacher = places.map((column) =>
      Uint32Array.from(column, (x, i) => (x === ABSENT ? fresh[used++] : student[x][i])));
    return { student, studentLogps, teacher, teacherLogps: logprobs(l) };
  }

  function read(rollout, bytes) {
    const from = reader(bytes), n = rollout.tokens, w = rollout.whole;
    const [k, l, wholeK, wholeL] = rollout.lists;
    const content = { codes: new Map(), exact: new Map() };
    if (k || l) content.lists = readLists(from, n, k, l, false);
    const sampled = from.take(n);
    const fresh = from.ids(sampled.filter((x) => x === ABSENT).length, data.width);
    let used = 0;
    content.tokens = Uint32Array.from(sampled, (x, i) => (x === ABSENT ? fresh[used++] : content.lists.student[x][i]));
    for (const s of rollout.signals) content.codes.set(s, from.take(n));
    content.places = from.ids(w, 3);
    content.row = new Map(Array.from(content.places, (place, i) => [place, i]));
    for (const s of rollout.signals) {
      content.exact.set(s, new Float32Array(from.take(4 * w).slice().buffer));
    }
    if (wholeK || wholeL) content.whole = readLists(from, w, wholeK, wholeL, true);
    if (rollout.success) {
      content.success = Array.from({ length: wholeK }, () => from.take(w));
    }
    return content;
  }

  function open(rollout) {
    rollout.opening ??= inflate(rollout).then((bytes) => {
      rollout.content = read(rollout, bytes);
      return rollout.content;
    });
    return rollout.opening;
  }

  // --- numbers ------------------------------------------------------------------------------

  // The value of a signal, whether it is exact, or undefined where it was not measured.
  function valueOf(rollout, s, place) {
    const { content } = rollout, signal = signals[s];
    const codes = content.codes.get(s);
    if (!codes || codes[place] === ABSENT) return undefined;
    const row = content.row.get(place);
    if (row !== undefined) return { value: content.exact.get(s)[row], exact: true };
    const [peak, most] = rollout.peaks[rollout.signals.indexOf(s)];
    if (peak === place) return { value: most, exact: true };
    const c = codes[place];
    const share = signal.direction ? signal.direction * (c / 254) ** 2
      : Math.sign(c - 127) * ((c - 127) / 127) ** 2;
    const value = signal.origin + signal.span * share;
    // What is read back may pass the largest by half a step; it is not the largest.
    return { value: signal.worst > 0 ? Math.min(value, most) : Math.max(value, most), exact: false };
  }

  const told = (found, unit) =>
    (found.exact ? "" : "≈ ") + decimals(found.value) + (unit ? " " + unit : "");

  // Colour class of a value: warm towards the worst side, cool towards the other.
  function colour(signal, value) {
    const away = (value - signal.origin) / signal.end;
    const step = Math.round(Math.min(1, Math.abs(away)) * STEPS);
    if (!step) return "";
    const warm = signal.direction !== 0 || away * signal.worst > 0;
    return (warm ? "tv-hot" : "tv-cool") + " tv-q" + step;
  }

  function listsAt(content, place) {
    const row = content.row.get(place);
    const [lists, i] = content.whole && row !== undefined ? [content.whole, row] : [content.lists, place];
    if (!lists) return null;
    const exact = lists === content.whole;
    const side = (ids, logps) => ids.map((column, r) => ({ token: column[i], logp: logps[r][i], exact }))
      .filter((entry) => entry.token !== 0 && !Number.isNaN(entry.logp));
    const found = {
      student: side(lists.student, lists.studentLogps),
      teacher: side(lists.teacher, lists.teacherLogps),
      whole: exact,
    };
    if (lists === content.whole && content.success) {
      found.success = new Map();
      lists.student.forEach((column, r) => {
        const code = content.success[r][i];
        if (column[i] && code !== ABSENT) found.success.set(column[i], (code / 254) ** 2);
      });
    }
    return found;
  }

  // --- words --------------------------------------------------------------------------------

  const hex = (token) => glossary.text[token].toUpperCase().replace(/(..)(?=.)/g, "$1 ");

  // A token as a name: white space is shown as signs.
  function name(token) {
    const text = glossary.text[token];
    if (glossary.kind[token] > SPECIAL) return hex(token);
    return text === "" ? "(empty)" : text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[^\S⏎⇥]/gu, "␣");
  }

  // The texts of all tokens as they stand in the answer. Bytes that are whole characters only
  // together stand at the first of them.
  function texts(tokens) {
    const shown = Array.from(tokens, (token) => {
      const text = glossary.text[token];
      if (glossary.kind[token] > SPECIAL) return hex(token);
      if (text === "") return "∅";
      const marked = text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");
      return /^[^\S\n\t]+$/u.test(text) ? text.replace(/[^\S\n\t]/gu, "␣") : marked;
    });
    const parts = new Map();
    for (let start = 0; start < tokens.length; start++) {
      let end = start;
      while (end < tokens.length && glossary.kind[tokens[end]] > SPECIAL) end++;
      if (end - start < 1) continue;
      const bytes = Array.from(tokens.slice(start, end), (t) => glossary.text[t]).join("");
      try {
        const whole = new TextDecoder("utf-8", { fatal: true }).decode(
          Uint8Array.from(bytes.match(/../g) ?? [], (byte) => parseInt(byte, 16)));
        if (/[\p{C}\p{Z}]/u.test(whole)) throw new Error("it would not be seen");
        for (let i = start; i < end; i++) {
          shown[i] = i === start ? whole : "‥";
          parts.set(i, whole);
        }
      } catch { /* no whole characters: they stay as they are */ }
      start = end;
    }
    return { shown, parts };
  }

  const verdict = (rollout) => (rollout.right === null ? "unjudged" : rollout.right ? "right" : "wrong");
  const VERDICTS = { right: "✓ right", wrong: "✗ wrong", unjudged: "not judged" };

  // --- rows ---------------------------------------------------------------------------------

  const key = (rollout) => rollout.question + "/" + rollout.index;

  function chosenRows() {
    const others = new Map();
    if (state.beside !== null) {
      rollouts.forEach((r) => { if (r.view === state.beside) others.set(key(r), r); });
    }
    return rollouts.filter((r) => r.view === state.view).map((r) => [r, others.get(key(r))])
      .filter(([left, right]) => state.filter === "all" || (state.filter === "differs"
        ? right && verdict(left) !== verdict(right) : verdict(left) === state.filter))
      .map((sides) => ({ sides, element: null, height: 0, filled: false }));
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const row = entry.target.row;
      row.near = entry.isIntersecting;
      if (row.near) queue.add(row);
      else if (row.filled && !row.element.contains(document.activeElement) && row !== active?.row) empty(row);
    }
    if (queue.size) requestAnimationFrame(work);
  }, { root: at("rows"), rootMargin: "700px 0px" });
  const queue = new Set();

  // One row a frame, so that scrolling never waits.
  function work() {
    const [row] = queue;
    if (!row) return;
    queue.delete(row);
    const more = () => { if (queue.size) requestAnimationFrame(work); };
    if (row.near && row.element.isConnected) fill(row).then(more);
    else more();
  }

  function show() {
    seen.disconnect();
    queue.clear();
    hint();
    rows = chosenRows();
    ranking = null;
    rank = -1;
    const two = state.beside !== null;
    at("rows").replaceChildren(...rows.map((row) => {
      const question = questions[row.sides[0].question];
      row.body = make("div", two ? "tv-sides tv-two" : "tv-sides");
      row.element = make("article", "tv-row",
        asked(question),
        make("p", "tv-facts", question.answer ? "answer " + question.answer + " · " : "",
          "question " + question.id, row.sides[0].index ? ", sample " + (row.sides[0].index + 1) : ""),
        row.body);
      row.element.row = row;
      // A guess keeps the scroll bar honest: a token is about four letters, a letter half an em.
      const columns = Math.max(20, at("rows").clientWidth / (two ? 2 : 1) / 8.3);
      row.body.style.minHeight = 24 * Math.ceil((4 * row.sides[0].tokens) / columns) + 60 + "px";
      return row.element;
    }));
    at("rows").scrollTop = 0;
    rows.forEach((row) => seen.observe(row.element));
    if (!rows.length) at("rows").append(make("p", "tv-row", "No answer is like that."));
    at("worst").disabled = at("next").disabled = at("previous").disabled = !rows.length;
    const right = rows.filter((row) => row.sides[0].right).length;
    const judged = rows.filter((row) => row.sides[0].right !== null).length;
    say(rows.length + (rows.length === 1 ? " answer" : " answers") + (judged ? ", " + right + " of " + judged + " right" : ""));
  }

  function asked(question) {
    const element = make("p", "tv-question", question.text || question.id);
    if (question.text.length > LONG) element.tabIndex = 0; // it scrolls
    return element;
  }

  async function fill(row) {
    if (row.filled) return;
    row.filled = true;
    await Promise.all(row.sides.map((rollout) => rollout && open(rollout)));
    if (!row.filled) return;
    const two = state.beside !== null, list = at("rows"), { element } = row;
    const before = element.offsetHeight, isAbove = element.offsetTop + before <= list.scrollTop;
    row.texts = [];
    row.body.replaceChildren(...row.sides.slice(0, two ? 2 : 1).map((rollout, side) => {
      if (!rollout) return make("p", "tv-facts", views[state.beside].label + ": this question was not recorded there");
      const text = textOf(row, rollout);
      row.texts[side] = text;
      return make("div", "tv-side", facts(rollout, two), text.strip, text.element);
    }));
    row.body.style.minHeight = "";
    row.texts.forEach(paint);
    // What is read stays where it is when an answer above gets its true height.
    if (isAbove) list.scrollTop += element.offsetHeight - before;
  }

  function empty(row) {
    row.body.style.minHeight = row.body.offsetHeight + "px";
    row.filled = false;
    row.texts = [];
    row.body.replaceChildren();
  }

  function facts(rollout, two) {
    const judged = make("b", "tv-" + verdict(rollout), VERDICTS[verdict(rollout)]);
    const end = { stop: " · ended by itself", length: " · cut at the limit" }[rollout.finish] ?? "";
    const count = " · " + rollout.tokens.toLocaleString("en") + (rollout.tokens === 1 ? " token" : " tokens");
    return make("p", "tv-facts", two ? views[rollout.view].label + " · " : "", judged, count + end);
  }

  function textOf(row, rollout) {
    const { shown, parts } = texts(rollout.content.tokens);
    const element = make("div", "tv-text");
    const text = { row, rollout, element, parts, spans: [], strip: make("div", "tv-strip") };
    text.strip.setAttribute("aria-hidden", "true");
    text.strip.text = text;
    element.text = text;
    element.dir = "auto";
    if (!shown.length) {
      element.append(make("span", "tv-mark", "(no tokens)"));
      return text;
    }
    element.tabIndex = 0;
    element.setAttribute("role", "listbox");
    element.setAttribute("aria-label", "Tokens of the answer to " + questions[rollout.question].id);
    shown.forEach((part, i) => {
      const span = document.createElement("span");
      span.textContent = part;
      span.place = i;
      span.setAttribute("role", "option");
      text.spans.push(span);
    });
    element.append(...text.spans);
    const cells = Math.min(CELLS, shown.length);
    for (let i = 0; i < cells; i++) text.strip.append(document.createElement("i"));
    return text;
  }

  function paint(text) {
    if (!text || !text.spans.length) return;
    const { rollout, spans, strip } = text, signal = signals[state.signal];
    const tokens = rollout.content.tokens, cells = strip.children, worst = new Array(cells.length);
    const found = spans.map((_, i) => valueOf(rollout, state.signal, i));
    const bad = found.map((f) => (f && colour(signal, f.value) ? signal.worst * f.value : NaN));
    const sorted = bad.filter((b) => !Number.isNaN(b)).sort((a, b) => b - a);
    const edge = sorted[Math.ceil(spans.length / UNDERLINED) - 1] ?? sorted.at(-1);
    spans.forEach((span, i) => {
      const kind = glossary.kind[tokens[i]];
      let look = "tv-t";
      if (kind === SPECIAL) look += " tv-special";
      else if (kind > SPECIAL && !text.parts.has(i)) look += " tv-bytes";
      if (found[i]) {
        const cell = Math.floor((i * cells.length) / spans.length);
        const here = signal.worst * found[i].value;
        look += " " + colour(signal, found[i].value) + (bad[i] >= edge ? " tv-worst" : "");
        if (!(worst[cell] >= here)) worst[cell] = here;
      }
      if (span === active?.span) look += " tv-active";
      span.className = look;
    });
    worst.forEach((value, cell) => { cells[cell].className = colour(signal, signal.worst * value); });
  }

  // --- the chosen token ---------------------------------------------------------------------

  function hint() {
    active = null;
    at("panel").replaceChildren(make("p", "tv-quiet", "Point at a token, or choose one with the arrow keys."));
  }

  function choose(text, place) {
    if (active) {
      active.span.classList.remove("tv-active");
      active.span.removeAttribute("id");
      active.span.removeAttribute("aria-selected");
    }
    const span = text.spans[place];
    active = { text, row: text.row, rollout: text.rollout, place, span };
    span.classList.add("tv-active");
    span.id = "tv-active";
    span.setAttribute("aria-selected", "true");
    document.querySelectorAll(".tv-text[aria-activedescendant]").forEach((e) => e.removeAttribute("aria-activedescendant"));
    text.element.setAttribute("aria-activedescendant", "tv-active");
    describe(text, place);
  }

  function describe(text, place) {
    const { rollout } = text, { content } = rollout, token = content.tokens[place];
    const id = glossary.id[token], kind = glossary.kind[token];
    const parts = [make("h3", "", name(token)), make("p", "tv-quiet",
      "token " + (place + 1).toLocaleString("en") + " of " + rollout.tokens.toLocaleString("en"),
      id >= 0 ? " · id " + id : "", kind === SPECIAL ? " · special token" : "",
      kind > SPECIAL ? " · bytes" + (text.parts.has(place) ? " of “" + text.parts.get(place) + "”" : ", no whole character") : "",
      " · " + views[rollout.view].label)];
    const lists = listsAt(content, place);
    if (lists) {
      parts.push(wanted(rollout, place, token, lists));
      const grid = make("div", "tv-lists", list("Student", lists.student, lists.teacher, token, lists.success),
        list("Teacher", lists.teacher, lists.student, token, lists.success));
      parts.push(grid);
      parts.push(make("p", "tv-quiet", lists.success ? "→ share of right answers after this token. Italics: on one side alone."
        : "Framed: sampled. Italics: in one list alone." + (lists.whole ? "" : data.least
          ? " Tokens below " + percent({ logp: Math.log(data.least) }) + " are left out." : "")));
    }
    const numbers = make("dl", "");
    rollout.signals.forEach((s) => {
      const found = valueOf(rollout, s, place), signal = signals[s];
      if (!signal.title || !found) return;
      const chosen = s === state.signal ? "tv-chosen" : "";
      numbers.append(make("dt", chosen, signal.title), make("dd", chosen, told(found, signal.unit)));
    });
    parts.push(numbers);
    at("panel").replaceChildren(...parts);
  }

  const code = (token) => make("span", "tv-code", name(token));

  function wanted(rollout, place, token, lists) {
    const [best] = lists.teacher, [own] = lists.student;
    if (!best) return make("p", "", "The teacher's list is empty.");
    const given = (side, t) => {
      const entry = lists[side].find((e) => e.token === t);
      if (entry) return percent(entry);
      const last = lists[side].at(-1);
      return last ? "less than " + percent(last) : "an unknown chance";
    };
    const p = make("p", "tv-wanted");
    if (lists.success) {
      p.append("The teacher wants ", code(best.token), " most (" + percent(best) + "); the student gives it " + given("student", best.token) + ".");
      return p;
    }
    const chance = sampled(rollout, place);
    if (best.token === token) {
      p.append("The teacher wanted this token too (" + percent(best) + "); the student gave it " + chance.student + ".");
    } else {
      p.append("The teacher wanted ", code(best.token), " (" + percent(best) + "); the student gave it "
        + given("student", best.token) + " and sampled ", code(token), " (" + chance.student
        + "), to which the teacher gives " + chance.teacher + ".");
    }
    if (own && own.token !== token && own.token !== best.token) {
      p.append(" The student's own first choice was ", code(own.token), " (" + percent(own) + ").");
    }
    return p;
  }

  // What both sides gave the token that was sampled, from its log-probability and the log-ratio.
  function sampled(rollout, place) {
    const find = (key) => valueOf(rollout, signals.findIndex((s) => s.key === key), place);
    const ratio = find("log_ratio"), listed = listsAt(rollout.content, place)?.student
      .find((entry) => entry.token === rollout.content.tokens[place]);
    const own = find("student_logprob") ?? (listed && { value: listed.logp, exact: listed.exact });
    return {
      student: own ? percent({ logp: own.value, exact: own.exact }) : "an unknown chance",
      teacher: own && ratio
        ? percent({ logp: Math.min(0, own.value + ratio.value), exact: own.exact && ratio.exact })
        : "an unknown chance",
    };
  }

  function list(title, entries, others, token, success) {
    const known = new Set(others.map((entry) => entry.token));
    const items = make("ol", "");
    entries.forEach((entry) => {
      const fill = make("span", "tv-fill");
      fill.style.width = 100 * Math.exp(entry.logp) + "%";
      const rate = success?.get(entry.token);
      const item = make("li", (entry.token === token ? "tv-sampled" : "") + (known.has(entry.token) ? "" : " tv-alone")
        + (entry.logp < TINY ? " tv-tiny" : ""),
        fill, make("span", "tv-name", name(entry.token)),
        make("span", "tv-number", percent(entry) + (rate === undefined ? "" : " → " + Math.round(100 * rate) + " %")));
      item.title = name(entry.token) + (glossary.id[entry.token] >= 0 ? " · id " + glossary.id[entry.token] : "");
      items.append(item);
    });
    return make("div", "", make("h4", "", title), items);
  }

  // --- the worst ----------------------------------------------------------------------------

  async function rankAll() {
    const mine = rows, s = state.signal, worst = signals[s].worst;
    await Promise.all(mine.map((row) => open(row.sides[0])));
    const found = [];
    mine.forEach((row) => {
      const rollout = row.sides[0];
      if (!rollout.signals.includes(s)) return;
      for (let place = 0; place < rollout.tokens; place++) {
        const value = valueOf(rollout, s, place);
        if (value) found.push({ row, place, bad: worst * value.value, exact: value.exact });
      }
    });
    found.sort((a, b) => b.bad - a.bad || b.exact - a.exact);
    return found.slice(0, RANKED);
  }

  async function jump(move) {
    if (!rows.length) return;
    const mine = (ranking ??= rankAll());
    const ranked = await mine;
    if (mine !== ranking) return;
    if (!ranked.length) return say("No answer shown has this signal.");
    rank = move === 0 ? 0 : Math.min(ranked.length - 1, Math.max(0, rank + move));
    const { row, place } = ranked[rank];
    await reveal(row, 0, place);
    const signal = signals[state.signal];
    say((rank ? "Worst but " + rank : "Worst") + ": “" + name(row.sides[0].content.tokens[place]) + "”, "
      + signal.title + " " + told(valueOf(row.sides[0], state.signal, place), signal.unit)
      + ", in the answer to " + questions[row.sides[0].question].id);
  }

  async function reveal(row, side, place) {
    row.near = true;
    await fill(row);
    const text = row.texts[side];
    choose(text, place);
    text.element.focus({ preventScroll: true });
    active.span.scrollIntoView({ block: "center" });
  }

  const say = (text) => { at("status").textContent = text; };

  // --- what the reader does -----------------------------------------------------------------

  function legend() {
    const signal = signals[state.signal], cells = [];
    const low = signal.direction === 0 ? -STEPS : 0;
    for (let step = low; step <= STEPS; step++) {
      const side = signal.direction === 0 ? 1 : signal.direction;
      cells.push(make("i", colour(signal, signal.origin + (side * step * signal.end) / STEPS)));
    }
    at("scale").replaceChildren(...cells);
    const end = decimals(signal.origin + (signal.direction || 1) * signal.end);
    const unit = signal.unit ? " " + signal.unit : "";
    const bound = (sign) => (signal.key === "overlap/ratio" ? "" : sign + " ");
    at("ticks").textContent = signal.direction === 0
      ? "≤ −" + end + " … 0 … ≥ " + end + unit
      : decimals(signal.origin) + " … " + bound(signal.direction > 0 ? "≥" : "≤") + end + unit;
    at("says").textContent = signal.says + " Underlined: the worst twentieth of an answer.";
  }

  function token(event) {
    const span = event.target.closest?.(".tv-t");
    return span && { text: span.parentElement.text, place: span.place };
  }

  // Only a pointer that moves points: the text may also move under one that rests.
  let pointed = 0, spot = "";
  at("rows").addEventListener("pointermove", (event) => {
    const here = event.screenX + "," + event.screenY;
    if (here === spot) return;
    spot = here;
    const found = token(event);
    cancelAnimationFrame(pointed);
    pointed = requestAnimationFrame(() => {
      if (found) describe(found.text, found.place);
      else if (active) describe(active.text, active.place);
    });
  });
  at("rows").addEventListener("pointerleave", () => {
    cancelAnimationFrame(pointed);
    if (active) describe(active.text, active.place);
  });
  at("rows").addEventListener("click", (event) => {
    const found = token(event);
    if (found) {
      choose(found.text, found.place);
      found.text.element.focus({ preventScroll: true });
    }
    const strip = event.target.closest?.(".tv-strip");
    if (strip?.text.spans.length) {
      const box = strip.getBoundingClientRect(), { text } = strip;
      const place = Math.floor(((event.clientX - box.left) / box.width) * text.spans.length);
      reveal(text.row, text.row.texts.indexOf(text), Math.min(text.spans.length - 1, Math.max(0, place)));
    }
  });
  at("rows").addEventListener("focusin", (event) => {
    const { text } = event.target;
    if (text?.spans?.length && active?.text !== text) choose(text, 0);
  });

  // The token above or below, nearest to where this one begins.
  function line(text, place, way) {
    const here = text.spans[place].getBoundingClientRect();
    let top = null, best = place, near = Infinity;
    for (let i = place + way; i >= 0 && i < text.spans.length; i += way) {
      const box = text.spans[i].getClientRects()[0];
      if (!box || (way > 0 ? box.top < here.top + 4 : box.top > here.top - 4)) continue;
      top ??= box.top;
      if (Math.abs(box.top - top) > 4) break;
      if (Math.abs(box.left - here.left) < near) {
        near = Math.abs(box.left - here.left);
        best = i;
      }
    }
    return best;
  }

  document.getElementById("tv").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const move = { w: 0, n: 1, p: -1 }[event.key];
    if (move !== undefined) {
      event.preventDefault();
      return void jump(move);
    }
    const { text } = event.target;
    if (!text?.spans?.length || active?.text !== text) return;
    const last = text.spans.length - 1, { place } = active;
    const next = {
      ArrowRight: () => Math.min(last, place + 1), ArrowLeft: () => Math.max(0, place - 1),
      ArrowDown: () => line(text, place, 1), ArrowUp: () => line(text, place, -1),
      Home: () => 0, End: () => last,
    }[event.key]?.();
    if (next === undefined) return;
    event.preventDefault();
    choose(text, next);
    active.span.scrollIntoView({ block: "nearest" });
  });
  at("worst").addEventListener("click", () => jump(0));
  at("next").addEventListener("click", () => jump(1));
  at("previous").addEventListener("click", () => jump(-1));

  at("signal").addEventListener("change", (event) => {
    state.signal = Number(event.target.value);
    ranking = null;
    rank = -1;
    legend();
    rows.forEach((row) => row.filled && row.texts?.forEach(paint));
    if (active) describe(active.text, active.place);
  });
  at("view").addEventListener("change", (event) => {
    state.view = Number(event.target.value);
    show();
  });
  at("beside").addEventListener("change", (event) => {
    state.beside = event.target.value === "" ? null : Number(event.target.value);
    show();
  });
  at("filter").addEventListener("change", (event) => {
    state.filter = event.target.value;
    show();
  });

  signals.forEach((signal, s) => { if (signal.title) at("signal").append(option(s, signal.title)); });
  views.forEach((view, v) => {
    at("view").append(option(v, view.label));
    at("beside").append(option(v, view.label));
  });
  // The latest checkpoint of the first run is what most readers look for.
  const trained = views.filter((view) => view.step !== null && view.run === views[0].run);
  state.view = trained.length ? views.indexOf(trained.at(-1)) : 0;
  at("view").value = state.view;
  legend();
  show();
})();
