// Draws the figures as they come near, and obeys the buttons.
(() => {
  const figures = new Map(JSON.parse(document.getElementById("data").textContent).map((f) => [f.id, f]));
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const hidden = new Set();
  const drawn = new Set();
  let chosen = null;

  const screenTheme = () => chosen ?? (prefersDark.matches ? "dark" : "light");
  const theme = () => (paper.matches ? "light" : screenTheme());

  function draw(place) {
    const figure = figures.get(place.dataset.figure);
    const { data, layout } = Figures.plot(figure, theme(), hidden);
    place.style.minHeight = layout.height + "px";
    Plotly.react(place, data, layout, { responsive: true, displayModeBar: false, doubleClick: "reset" });
    drawn.add(place);
  }

  function redraw() {
    root.dataset.theme = screenTheme();
    const button = document.getElementById("theme");
    button.textContent = screenTheme() === "dark" ? "Light" : "Dark";
    document.querySelectorAll("[data-colour]").forEach((mark) => {
      mark.style.background = Figures.colour(screenTheme(), Number(mark.dataset.colour));
    });
    drawn.forEach(draw);
  }

  function save(name, type, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  document.addEventListener("click", (event) => {
    const kind = event.target.dataset?.save;
    if (!kind) return;
    const figure = figures.get(event.target.closest("figure").id);
    if (kind === "csv") return save(`${figure.id}.csv`, "text/csv", Figures.csv(figure));
    const height = Math.max(420, Figures.height(figure) + 80);
    Plotly.downloadImage(Figures.picture(figure, hidden), { format: kind, filename: figure.id, width: 840, height, scale: kind === "png" ? 2 : 1 });
  });
  document.addEventListener("change", (event) => {
    const run = event.target.dataset?.run;
    if (run === undefined) return;
    if (event.target.checked) hidden.delete(run); else hidden.add(run);
    drawn.forEach(draw);
  });
  document.getElementById("theme").addEventListener("click", () => {
    chosen = screenTheme() === "dark" ? "light" : "dark";
    redraw();
  });
  document.getElementById("print").addEventListener("click", () => print());
  prefersDark.addEventListener("change", redraw);
  paper.addEventListener("change", redraw);
  redraw();

  const waiting = [...document.querySelectorAll("[data-figure]")];
  // In turn, so that the page answers meanwhile: all are there for printing and searching.
  function next() {
    const place = waiting.shift();
    if (!place) { root.dataset.ready = "yes"; return; }
    draw(place);
    setTimeout(next, 0);
  }
  plotly.then(next);
  addEventListener("beforeprint", () => window.Plotly && waiting.splice(0).forEach(draw));

  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const spy = new IntersectionObserver((entries) => {
    const seen = entries.find((entry) => entry.isIntersecting);
    if (!seen) return;
    links.forEach((a) => a.removeAttribute("aria-current"));
    links.get(seen.target.id)?.setAttribute("aria-current", "true");
  }, { rootMargin: "0px 0px -70% 0px" });
  links.forEach((_, id) => { const part = document.getElementById(id); if (part) spy.observe(part); });
})();
