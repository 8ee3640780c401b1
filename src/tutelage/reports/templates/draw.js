const figures = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {
  const ink = dark.matches ? "#e8e8e8" : "#222";
  const grid = dark.matches ? "#444" : "#ddd";
  figures.forEach((figure, i) => {
    const axis = (given) => ({ ...given, gridcolor: grid, zerolinecolor: grid, automargin: true });
    Plotly.react("figure-" + i, figure.data, {
      xaxis: axis(figure.layout.xaxis),
      yaxis: axis(figure.layout.yaxis),
      showlegend: figure.data.length > 1,
      font: { color: ink },
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      margin: { l: 60, r: 15, t: 10, b: 45 },
      height: 300,
    }, { responsive: true, displayModeBar: false });
  });
}
dark.addEventListener("change", draw);
draw();
