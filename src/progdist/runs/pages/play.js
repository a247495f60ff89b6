const $ = id => document.getElementById(id), NAMES = { ddim: "DDIM", dpmpp: "DPM-Solver++" };
const classes = models.map(model => model.classes).reduce((a, b) => a.length > b.length ? a : b);
const scales = models.map(model => model.guidance).filter(Boolean);
classes.forEach(([label, name]) => $("class").add(new Option(name, label)));
$("for-class").hidden = !classes.length || models.every(model => model.text);
$("for-prompt").hidden = !models.some(model => model.text);
$("for-guidance").hidden = !scales.length;
if (scales.length) {
  $("guidance").min = Math.min(...scales.map(scale => scale[0]));
  $("guidance").max = Math.max(...scales.map(scale => scale[1]));
  $("guidance").value = scales[0][2];
}

const cards = models.map((model, index) => {
  const card = $("card").content.firstElementChild.cloneNode(true), [steps, sampler] = card.querySelectorAll("input, select");
  $("models").append(card);
  card.querySelector("h2").textContent = model.title;
  card.classList.toggle("any", !model.own.length);
  steps.max = model.counts.length - 1;
  steps.value = model.counts.indexOf(model.steps);
  model.methods.forEach(name => sampler.add(new Option(NAMES[name] || name, name)));
  sampler.parentElement.hidden = !model.methods.length;
  const showSteps = () => {
    const count = model.counts[steps.value];
    card.querySelector("output").textContent = count + (count === 1 ? " step" : " steps");
  };
  steps.addEventListener("input", () => { showSteps(); draw([index]); });
  sampler.addEventListener("input", () => draw([index]));
  showSteps();
  return { card, count: () => model.counts[steps.value], method: () => sampler.value || "ddim" };
});

const request = index => {
  const model = models[index], options = { model: index, seed: Number($("seed").value), steps: cards[index].count(), method: cards[index].method() };
  if (model.classes.length && !model.text && $("class").value !== "") options.label = Number($("class").value);
  if (model.text) options.prompt = $("prompt").value;
  if (model.guidance) options.guidance = Math.min(Math.max(Number($("guidance").value), model.guidance[0]), model.guidance[1]);
  return options;
};

const waiting = new Set();
let working = false;
const draw = async indices => {  // one after the other, fewest steps first; a model changed meanwhile is drawn again
  indices.forEach(index => {
    const { card } = cards[index];
    waiting.add(index);
    card.classList.add("busy");
    if (!card.querySelector("img").src) card.querySelector("small").textContent = "drawing…";
  });
  $("scale").textContent = $("guidance").value;
  if (working) return;
  working = true;
  while (waiting.size) {
    const index = [...waiting].reduce((least, other) => cards[other].count() < cards[least].count() ? other : least);
    const { card } = cards[index], small = card.querySelector("small");
    waiting.delete(index);
    let made;
    try {
      const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request(index)) };
      made = await (await fetch("/draw", options)).json();
    } catch { made = { error: "The server does not respond: check that progdist play is running." }; }
    small.classList.toggle("error", "error" in made);
    if (made.error) small.textContent = made.error;
    else {
      const picture = card.querySelector("img"), own = models[index].own;
      picture.src = made.image;
      picture.alt = "images of " + models[index].title;
      picture.classList.toggle("pixels", made.width < 300);
      const odd = own.length && !own.includes(cards[index].count()) ? ` · distilled for ${own.join(", ")}` : "";
      small.textContent = `${Number(made.milliseconds.toPrecision(2))} ms for ${made.images} images · ${made.evaluations} evaluation${made.evaluations > 1 ? "s" : ""} each${odd}`;
    }
    if (!waiting.has(index)) card.classList.remove("busy");
  }
  working = false;
};
const all = () => draw(models.map((_, index) => index));
$("new").addEventListener("click", () => { $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]; all(); });
$("controls").addEventListener("submit", event => event.preventDefault());
$("seed").addEventListener("change", () => { if ($("seed").reportValidity()) all(); });
for (const id of ["class", "prompt", "guidance"]) $(id).addEventListener("change", all);
all();
