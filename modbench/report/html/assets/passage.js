// Routing: the tokens of a passage, shaded where the chosen layer processes them.
(() => {
  const data = dataOf("passage-data");
  if (!data) return;
  const scheme = byId("viewer-scheme"), layer = byId("viewer-layer"), number = byId("viewer-number");
  const training = byId("viewer-training"), said = byId("viewer-said"), text = byId("viewer-text");
  let spans = [], shownText = -1;

  function tokens(index) {
    if (shownText === index) return;
    shownText = index;
    const shown = (token) => (token === "" ? "<end>" : token.replace(/\n/g, "↵\n").replace(/\t/g, "⇥"));
    spans = data.texts[index].map((token) => make("span", {}, shown(token)));
    text.replaceChildren(...spans);
  }
  function show() {
    const of = data.schemes[+scheme.value];
    tokens(of.text);
    layer.max = of.layers.length - 1;
    if (+layer.value > +layer.max) layer.value = layer.max;
    number.textContent = `${layer.value} of 0 to ${layer.max}`;
    const chosen = of.layers[+layer.value], count = spans.length;
    let on = count, differ = 0;
    if (chosen && chosen.causal) on = [...chosen.causal].filter((bit) => bit === "1").length;
    const experts = chosen && chosen.experts ? Math.max(...chosen.experts) + 1 : 0;
    spans.forEach((span, index) => {
      span.className = "";
      span.style.cssText = "";
      span.removeAttribute("title");
      if (!chosen) span.className = "all";
      else if (experts) {
        const expert = chosen.experts[index];
        if (expert < 0) return;
        span.style.backgroundColor = `hsl(${Math.round((expert * 360) / experts)} 70% 82%)`;
        span.style.color = "#15181c";
        span.title = "expert " + expert;
      } else {
        if (chosen.causal[index] === "1") span.className = "on";
        if (training.checked && chosen.causal[index] !== chosen.training[index]) { span.classList.add("differs"); differ++; }
      }
    });
    const share = ((100 * on) / count).toFixed(1);
    said.textContent = !chosen ? `Layer ${layer.value} processes all ${count} tokens.`
      : experts ? `Layer ${layer.value}: every token chooses among ${experts} experts; the colour is its first one.`
      : `Layer ${layer.value} processes ${on} of ${count} tokens (${share} %); the others skip it.` +
        (training.checked ? ` The training rule decides otherwise for ${differ}.` : "");
    layer.setAttribute("aria-valuetext", said.textContent);
  }
  // The first layer that does not process everything.
  const first = () => Math.max(0, data.schemes[+scheme.value].layers.findIndex((of) => of !== null));
  layer.max = data.schemes[+scheme.value].layers.length - 1;
  layer.value = first();
  for (const [control, kind] of [[scheme, "change"], [layer, "input"], [training, "change"]]) control.addEventListener(kind, show);
  byId("viewer").querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  show();
})();
