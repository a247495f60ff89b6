document.documentElement.classList.add("scripted");
const $ = id => document.getElementById(id);
const slides = [...document.querySelectorAll(".slide")].reverse();  // few steps left, as in the figures
const steps = $("steps"), guidance = $("guidance");
const scales = guidance ? guidance.dataset.scales.split(" ") : [];
const label = (slider, output, text) => { output.textContent = text; slider.setAttribute("aria-valuetext", text); };
const show = () => {
  slides.forEach((slide, index) => { slide.hidden = index !== Number(steps.value); });
  const count = slides[steps.value].dataset.steps;
  label(steps, $("count"), count + (count === "1" ? " step" : " steps"));
  if (!guidance) return;
  const scale = scales[guidance.value];
  for (const singles of document.querySelectorAll(".singles")) singles.hidden = singles.dataset.guidance !== scale;
  label(guidance, $("scale"), scale);
};
if (slides.length && steps) {  // the address keeps the sliders, #4 or #4,7.5, when the page is reloaded
  const [count, scale] = location.hash.slice(1).split(","), kept = slides.findIndex(slide => slide.dataset.steps === count);
  if (kept >= 0) steps.value = kept;
  if (scales.includes(scale)) guidance.value = scales.indexOf(scale);
  for (const slider of [steps, guidance]) slider?.addEventListener("input", () => {
    show();
    const shown = [slides[steps.value].dataset.steps, ...(guidance ? [scales[guidance.value]] : [])];
    history.replaceState(null, "", "#" + shown.join(","));
  });
  show();
}
const place = "place of " + location.pathname, headings = [...document.querySelectorAll("h2")];
addEventListener("pagehide", () => {  // the scroll position, relative to a heading, because the content above may grow
  const heading = headings.findLast(each => each.getBoundingClientRect().top < 100);
  const offset = heading ? heading.getBoundingClientRect().top : -scrollY;
  const open = [...document.querySelectorAll("details[open] > summary")].map(each => each.textContent);
  try { sessionStorage.setItem(place, JSON.stringify({ heading: heading?.textContent, offset, open })); } catch { /* no storage */ }
});
try {
  const kept = JSON.parse(sessionStorage.getItem(place));
  if (kept && performance.getEntriesByType("navigation")[0].type === "reload") {
    history.scrollRestoration = "manual";
    for (const summary of document.querySelectorAll("summary")) summary.parentElement.open = kept.open.includes(summary.textContent);
    const heading = headings.find(each => each.textContent === kept.heading);
    scrollTo(0, (heading ? heading.getBoundingClientRect().top + scrollY : 0) - kept.offset);
  }
} catch { /* no storage, no place */ }
const status_ = $("status");
if (status_) {  // the run continues: reload the page, but not while the reader touches it
  let touched = 0;
  for (const event of ["pointerdown", "pointermove", "keydown"]) addEventListener(event, () => { touched = Date.now(); });
  const opened = Date.now();
  const tick = () => {
    const seconds = Math.max(0, Math.round(Date.now() / 1000 - status_.dataset.written));
    const age = seconds < 100 ? seconds + " s" : Math.round(seconds / 60) + " min";
    $("age").textContent = "Written " + age + " ago" + (!status_.classList.contains("running") ? "; this page updates when the run resumes." :
      seconds < 600 ? "; it reloads by itself." : ": the run may have stopped. Run the same command to resume.");
    if (!document.hidden && Date.now() - opened > 15000 && Date.now() - touched > 5000) location.reload();
  };
  tick();
  setInterval(tick, 1000);
}
