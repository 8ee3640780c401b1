// What every kind of figure is for plotly, and its rows for a CSV file. No figure reads the page.
const Figures = (() => {
  const palettes = {
    light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1d2126"],
    dark: ["#56B4E9", "#E69F00", "#2DBE95", "#DD9DC0", "#F0E442", "#D55E00", "#e6e8ea"],
  };
  const inks = {
    light: { ink: "#1d2126", soft: "#5a626c", grid: "#e8eaed", paper: "#ffffff" },
    dark: { ink: "#e6e8ea", soft: "#a3abb4", grid: "#30363d", paper: "#1a1e22" },
  };
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const symbols = ["circle", "diamond", "square", "triangle-up", "cross", "star"];
  const font = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, 'Liberation Sans', sans-serif";
  // plotly reads some markup in labels; ours are text.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text) => plain(text.length > 42 ? text.slice(0, 41) + "…" : text);
  const colour = (theme, i) => palettes[theme][i % palettes[theme].length];

  function lines(figure, theme, hidden) {
    const many = new Set(figure.traces.map((t) => t.run)).size > 1;
    const key = (t) => t.run + "\u0000" + t.name;
    const bold = new Set(figure.traces.filter((t) => t.style === "line").map(key));
    // Of several runs the legend names the bold lines alone; the rest follows the run it belongs to.
    const lead = new Map(figure.traces.filter((t) => t.style === "line").reverse().map((t) => [t.run, key(t)]));
    const follows = (t) => many && t.style !== "line" && lead.has(t.run);
    const label = (t) => {
      if (many) return t.name ? `${t.run}, ${t.name}` : t.run;
      if (t.name) return t.name;
      return t.style === "faint" ? "each training step" : "held-out";
    };
    return figure.traces.filter((t) => !hidden.has(t.run)).map((t) => {
      const stroke = colour(theme, t.colour);
      const twin = t.style === "faint" && bold.has(key(t));
      const few = t.x.length <= 60;
      const trace = {
        type: "scatter", x: t.x, y: t.y, name: short(label(t)), 
        legendgroup: follows(t) && !twin ? lead.get(t.run) : key(t) + (twin && !many && !t.name ? "f" : ""),
        showlegend: !follows(t) && !(twin && t.name),
        mode: t.style === "points" ? "markers" : t.style === "line" && few ? "lines+markers" : "lines",
        opacity: t.style === "faint" ? (twin ? 0.35 : 0.9) : t.style === "points" ? 0.7 : 1,
        line: { color: stroke, width: t.style === "faint" ? 1 : 2, dash: t.style === "level" ? "dot" : t.style === "faint" && (!many || lead.size) ? "solid" : dashes[t.dash % dashes.length] },
        marker: { color: stroke, size: t.style === "points" ? 6 : 5, symbol: t.style === "points" && t.dash ? "x-thin" : symbols[t.dash % symbols.length], line: { color: stroke, width: t.style === "points" && t.dash ? 1.5 : 0 } },
        hovertemplate: "step %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
      };
      if (t.low) {
        const below = t.y.map((y, i) => y - t.low[i]), above = t.y.map((y, i) => t.high[i] - y);
        trace.error_y = { type: "data", symmetric: false, array: above, arrayminus: below, color: stroke, thickness: 1, width: 2 };
      }
      return trace;
    });
  }

  function heat(figure, theme) {
    const centre = theme === "dark" ? "#2b3137" : "#f4f4f2";
    return [{
      type: "heatmap", x: figure.steps, y: figure.places, z: figure.cells, zmin: figure.low, zmax: figure.high,
      colorscale: figure.diverging ? [[0, "#D55E00"], [0.5, centre], [1, "#0072B2"]] : "Cividis",
      colorbar: { thickness: 12, outlinewidth: 0, title: { text: plain(figure.unit), side: "right", font: { size: 11 } }, tickfont: { size: 11 } },
      hoverongaps: false, hovertemplate: "step %{x}, token %{y}: %{z:.4g}<extra></extra>",
    }];
  }

  const bars = (figure, theme, hidden) => figure.parts.map((part, i) => {
    const kept = figure.runs.map((run, j) => [run, part.values[j]]).filter(([run]) => !hidden.has(run));
    return {
      type: "bar", orientation: "h", name: short(part.name), y: kept.map(([run]) => short(run)), x: kept.map(([, value]) => value),
      marker: { color: colour(theme, i), pattern: { shape: ["", "/", "", "x", "", "."][i % 6], fillmode: "overlay", fgcolor: inks[theme].paper, fgopacity: 0.5, size: 6 } },
      hovertemplate: "%{x:.3g} s<extra>%{fullData.name}</extra>",
    };
  });

  const dots = (figure, theme) => figure.parts.map((part, i) => {
    const count = figure.parts.length;
    const shift = (i - (count - 1) / 2) * Math.min(0.22, 0.7 / count);
    const trace = {
      type: "scatter", mode: "markers", name: short(part.name), x: part.values, y: figure.labels.map((_, j) => j + shift),
      text: figure.labels.map(short), marker: { color: colour(theme, i), size: 8, symbol: symbols[i % symbols.length] },
      hovertemplate: "%{text}: %{x:.4g}<extra>%{fullData.name}</extra>",
    };
    trace.error_x = {
      type: "data", symmetric: false, color: colour(theme, i), thickness: 1.5, width: 4,
      array: part.values.map((v, j) => part.high[j] === null ? 0 : part.high[j] - v),
      arrayminus: part.values.map((v, j) => part.low[j] === null ? 0 : v - part.low[j]),
    };
    return trace;
  });

  const kinds = { lines, heat, bars, dots };

  function height(figure) {
    if (figure.kind === "bars") return Math.max(260, 150 + 40 * figure.runs.length);
    if (figure.kind === "dots") return Math.max(220, 110 + figure.labels.length * (24 + 14 * figure.parts.length));
    return 300;
  }

  function layout(figure, theme, data) {
    const { ink, soft, grid } = inks[theme];
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, tickfont: { size: 11, color: soft }, ticks: "" };
    // Of both sides of a margin plotly finds no end where a label stands at the edge.
    const along = { ...axis, automargin: "height" }, up = { ...axis, automargin: "width" };
    const title = (text) => ({ text: plain(text), font: { size: 11.5, color: soft }, standoff: 8 });
    const made = {
      xaxis: { ...along, title: title(figure.x) }, yaxis: { ...up, title: title(figure.y) },
      font: { color: ink, family: font, size: 12 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 52, r: 18, t: 8, b: 44 }, height: height(figure), hovermode: "closest", dragmode: "zoom",
      hoverlabel: { font: { family: font, size: 12 } },
      showlegend: data.filter((t) => t.showlegend !== false).length > 1 && figure.kind !== "heat",
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11, color: soft }, bgcolor: "rgba(0,0,0,0)" },
    };
    if (figure.kind === "lines") {
      const positive = data.some((t) => t.y.some((y) => y > 0));
      if (figure.scale === "log" && positive) Object.assign(made.yaxis, { type: "log", exponentformat: "power", dtick: 1 });
      else if (figure.scale === "share" && data.every((t) => t.y.every((y) => y > 0.5))) made.yaxis.rangemode = "normal";
      else made.yaxis.rangemode = "tozero";
      if (figure.scale === "share") made.yaxis.tickformat = "~%";
    }
    if (figure.kind === "heat") {
      made.xaxis.showgrid = made.yaxis.showgrid = made.xaxis.automargin = made.yaxis.automargin = false;
      Object.assign(made.margin, { l: 58, r: 84 });
    }
    if (figure.kind === "bars") { made.barmode = "stack"; made.bargap = 0.5; made.yaxis.title = ""; made.yaxis.autorange = "reversed"; made.legend.traceorder = "normal"; }
    if (figure.kind === "dots") {
      Object.assign(made.yaxis, { tickvals: figure.labels.map((_, i) => i), ticktext: figure.labels.map(short), range: [figure.labels.length - 0.5, -0.5], title: "", showgrid: false, zeroline: false });
      Object.assign(made.xaxis, { zeroline: true, zerolinecolor: soft, zerolinewidth: 1.5 });
    }
    return made;
  }

  function plot(figure, theme, hidden = new Set()) {
    const data = kinds[figure.kind](figure, theme, hidden);
    return { data, layout: layout(figure, theme, data) };
  }

  // For a file: on white, with its title.
  function picture(figure, hidden) {
    const made = plot(figure, "light", hidden);
    Object.assign(made.layout, {
      paper_bgcolor: inks.light.paper, plot_bgcolor: inks.light.paper,
      title: { text: plain(figure.title), x: 0, xref: "paper", font: { size: 15 } },
    });
    made.layout.margin.t = made.layout.showlegend ? 78 : 48;
    return made;
  }

  function rows(figure) {
    if (figure.kind === "lines") {
      return figure.traces.flatMap((t) => t.x.map((x, i) => [t.run, t.name, x, t.y[i], t.low ? t.low[i] : null, t.high ? t.high[i] : null]));
    }
    if (figure.kind !== "heat") return figure.rows;
    return figure.spans.flatMap(([first, last], j) => figure.cells.flatMap((row, i) =>
      row[j] === null ? [] : [[figure.run, first, last, figure.places[i], figure.places[i + 1], row[j]]]));
  }

  function cell(value) {
    if (value === null) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t]/.test(value) ? "'" + value : value; // no spreadsheet may take it for a formula
    return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  }

  const csv = (figure) => [figure.columns, ...rows(figure)].map((row) => row.map(cell).join(",") + "\r\n").join("");

  return { plot, picture, csv, colour, height };
})();
