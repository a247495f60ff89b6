document.documentElement.classList.add("scripted");
const slides = [...document.querySelectorAll(".slide")], slider = document.getElementById("steps");
const show = () => {
  slides.forEach((slide, index) => { slide.hidden = index !== Number(slider.value); });
  const steps = slides[slider.value].dataset.steps;
  document.getElementById("count").textContent = steps + (steps === "1" ? " step" : " steps");
};
if (slides.length) {
  const kept = slides.findIndex(slide => "#" + slide.dataset.steps === location.hash);
  if (kept >= 0) slider.value = kept;
  slider.addEventListener("input", () => { history.replaceState(null, "", "#" + slides[slider.value].dataset.steps); show(); });
  show();
}
const status_ = document.getElementById("status");
if (status_) {  // the run goes on: load the page anew, but not under the reader's finger
  let touched = 0;
  for (const event of ["pointerdown", "pointermove", "keydown"]) addEventListener(event, () => { touched = Date.now(); });
  const opened = Date.now();
  const tick = () => {
    const seconds = Math.max(0, Math.round(Date.now() / 1000 - status_.dataset.written));
    const age = seconds < 100 ? seconds + " s" : Math.round(seconds / 60) + " min";
    document.getElementById("age").textContent = "Written " + age + " ago" + (seconds < 600 ? "; it loads itself anew." :
      ": the run may have stopped. Its command continues it where it stopped.");
    if (!document.hidden && Date.now() - opened > 15000 && Date.now() - touched > 5000) location.reload();
  };
  tick();
  setInterval(tick, 1000);
}
