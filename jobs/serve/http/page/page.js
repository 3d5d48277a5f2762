"use strict";
// Sends the chosen image to this server, and draws what it answers.

const settings = document.documentElement.dataset;
const COLOURS = ["#ffb000", "#4dd2ff", "#7ee081", "#ff8fa3", "#c8a2ff", "#ffe14d", "#5ff0d8", "#ff9d5c"];
const SVG = "http://www.w3.org/2000/svg";
const SETTLE = 250; // milliseconds after the last change of the least score
const part = (id) => document.getElementById(id);
let chosen = null; // the File
let asked = 0; // number of the newest request; older answers are left out
let timer = null;

function colourOf(label) {
  const sum = [...new TextEncoder().encode(label)].reduce((total, byte) => total + byte, 0);
  return COLOURS[sum % COLOURS.length];
}

function show(text, wrong = false) {
  part("status").textContent = text;
  part("status").classList.toggle("wrong", wrong);
}

function element(name, attributes, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

function drawBoxes(answer) {
  const { width, height, detections } = answer;
  const pixel = width / part("image").clientWidth, line = 2 * pixel, size = 13 * pixel;
  const drawing = part("boxes");
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const names = detections.map((one) => `${one.label} ${one.score.toFixed(2)}`).join(", ");
  const title = element("title", { id: "boxes-title" }, `Boxes: ${names || "none"}`);
  drawing.replaceChildren(title);
  for (const { label, box: [left, top, right, bottom] } of [...detections].reverse()) {
    drawing.append(element("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "none", stroke: colourOf(label), "stroke-width": line }));
  }
  const taken = [];
  for (const detection of detections) drawName(drawing, detection, taken, { width, height, size });
}

// Draws a name beside its box, within the image, and over no name in `taken`. The table has all
// names, so one for which there is no room is left out.
function drawName(drawing, { label, score, box: [left, top, right, bottom] }, taken, { width, height, size }) {
  const text = element("text", { "font-size": size, "font-family": "ui-monospace, monospace", fill: "#000", class: "name" }, `${label} ${score.toFixed(2)}`);
  drawing.append(text);
  const wide = text.getComputedTextLength() + 0.5 * size, high = 1.3 * size;
  const into = (x) => Math.max(0, Math.min(x, width - wide));
  const places = [top - high, bottom, top].flatMap((y) => [[into(left), y], [into(right - wide), y]]);
  const found = places.find(([x, y]) => y >= 0 && y + high <= height && wide <= width
    && taken.every((other) => x >= other.x + other.wide || other.x >= x + wide || y >= other.y + high || other.y >= y + high));
  if (!found) return text.remove();
  const [x, y] = found;
  taken.push({ x, y, wide });
  text.setAttribute("x", x + 0.25 * size);
  text.setAttribute("y", y + size);
  text.before(element("rect", { x, y, width: wide, height: high, fill: colourOf(label) }));
}

function listRows(detections) {
  part("rows").replaceChildren(...detections.map(({ label, score, box }) => {
    const row = document.createElement("tr");
    const cells = [label, score.toFixed(3), box.map((side) => Math.round(side)).join(", ")];
    cells.forEach((text, number) => {
      const cell = row.insertCell();
      if (number) cell.className = "n";
      else {
        const mark = document.createElement("span");
        mark.className = "mark";
        mark.style.background = colourOf(label);
        cell.append(mark);
      }
      cell.append(text);
    });
    return row;
  }));
}

async function send() {
  const form = new FormData();
  form.append("model", settings.model);
  form.append("threshold", part("threshold").value);
  form.append("images", chosen);
  const key = part("key").value.trim();
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch("v1/detections", { method: "POST", body: form, headers });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}

async function detect() {
  if (chosen === null) return;
  if (settings.needsKey === "yes" && !part("key").value.trim()) {
    show("This server wants a key: give it, and the image is sent.", true);
    part("key").focus();
    return;
  }
  if (chosen.size > Number(settings.mostBytes)) {
    show(`The image has ${chosen.size} bytes, and ${settings.mostBytes} are allowed.`, true);
    return;
  }
  const number = ++asked, began = performance.now();
  show("Detecting ...");
  try {
    const answer = await send();
    if (number !== asked) return;
    const [image] = answer.data;
    if (image.error) throw new Error(image.error.message);
    part("json").textContent = JSON.stringify(answer, null, 2);
    listRows(image.detections);
    part("result").hidden = false;
    await part("image").decode();
    drawBoxes(image);
    const count = image.detections.length, seconds = (performance.now() - began) / 1000;
    show(`${count} ${count === 1 ? "detection" : "detections"} in ${image.width} x ${image.height} pixels, ${seconds.toFixed(2)} s`);
  } catch (error) {
    if (number !== asked) return;
    part("result").hidden = true;
    show(error.message, true);
  }
}

function choose(file) {
  if (!file) return;
  chosen = file;
  URL.revokeObjectURL(part("image").src);
  part("image").src = URL.createObjectURL(file);
  part("image").alt = `The chosen image, ${file.name}`;
  part("result").hidden = true;
  writeExamples();
  detect();
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function writeExamples() {
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  const name = chosen ? chosen.name : "photo.jpg", least = part("threshold").value;
  const header = settings.needsKey === "yes" ? ' -H "Authorization: Bearer $DETR_BATCH_KEY"' : "";
  part("curl").textContent = `curl ${base}/v1/detections${header} \\
  -F model=${quoted(settings.model)} -F threshold=${least} -F images=${quoted(`@${name}`)}`;
  const key = settings.needsKey === "yes" ? 'os.environ["DETR_BATCH_KEY"]' : '"none"';
  part("python").textContent = `import base64, json${key === '"none"' ? "" : ", os"}
from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(`${base}/v1`)}, api_key=${key})
image = base64.b64encode(open(${JSON.stringify(name)}, "rb").read()).decode()
url = f"data:${(chosen && chosen.type) || "image/jpeg"};base64,{image}"
content = [{"type": "image_url", "image_url": {"url": url}}]
answer = client.chat.completions.create(
    model=${JSON.stringify(settings.model)}, messages=[{"role": "user", "content": content}],
    extra_body={"threshold": ${least}},
)
for found in json.loads(answer.choices[0].message.content)["images"][0]["detections"]:
    print(found["label"], found["score"], found["box"])`;
}

function showThreshold() {
  part("shown-threshold").textContent = Number(part("threshold").value).toFixed(2);
  writeExamples();
}

async function copy(event) {
  const button = event.target;
  await navigator.clipboard.writeText(part(button.dataset.copies).textContent);
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

part("key-field").hidden = settings.needsKey !== "yes";
part("threshold").value = settings.threshold;
showThreshold();
part("file").addEventListener("change", (event) => choose(event.target.files[0]));
part("form").addEventListener("submit", (event) => event.preventDefault());
part("key").addEventListener("change", detect);
part("threshold").addEventListener("input", () => {
  showThreshold();
  clearTimeout(timer);
  timer = setTimeout(detect, SETTLE);
});
for (const button of document.querySelectorAll("[data-copies]")) {
  button.hidden = !navigator.clipboard; // browsers have it for https and loopback alone
  button.addEventListener("click", copy);
}
const drop = part("drop");
for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.remove("over"); });
}
drop.addEventListener("drop", (event) => choose(event.dataTransfer.files[0]));
