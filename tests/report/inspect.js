// What is wrong with the page that is open: a list of sentences for each kind of fault.
const faults = {overflow: [], figures: [], text: [], names: [], contrast: [], headings: [], links: []};
const width = document.documentElement.clientWidth;
const where = (e) => e.closest('svg') && e.tagName !== 'svg' ? `text of ${where(e.closest('svg'))}`
  : `${e.tagName.toLowerCase()}.${e.getAttribute('class') || ''} "${(e.getAttribute('aria-label') || e.textContent || e.alt || '').trim().slice(0, 50)}"`;
const scrolls = (e) => {
  for (let p = e; p && p !== document.body; p = p.parentElement)
    if (/(auto|scroll|hidden)/.test(getComputedStyle(p).overflowX)) return true;
  return false;
};
if (document.documentElement.scrollWidth > width)
  faults.overflow.push(`the page is ${document.documentElement.scrollWidth} wide in ${width}`);
for (const e of document.body.querySelectorAll('*:not(svg *)')) {
  const r = e.getBoundingClientRect();
  if (r.width && (r.right > width + 0.5 || r.left < -0.5) && !scrolls(e)) faults.overflow.push(where(e));
}
for (const e of document.querySelectorAll('.panel, .class, td, th, pre'))
  if (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline' && !scrolls(e))
    faults.overflow.push(`content of ${where(e)}: ${e.scrollWidth} in ${e.clientWidth}`);

for (const e of document.querySelectorAll('img')) {
  if (!e.complete || !e.naturalWidth) faults.figures.push(where(e));
  if (!(e.alt || '').trim()) faults.names.push(where(e));
}
for (const e of document.querySelectorAll('svg')) {
  const r = e.getBoundingClientRect();
  if (r.width < 20 || r.height < 10) faults.figures.push(`${where(e)} is ${r.width} x ${r.height}`);
  if (e.getAttribute('role') !== 'img' || !(e.getAttribute('aria-label') || '').trim()) faults.names.push(where(e));
  for (const t of e.querySelectorAll('.text, text')) {
    const b = t.getBoundingClientRect();
    if (b.width && (b.left < r.left - 1 || b.right > r.right + 1 || b.top < r.top - 1 || b.bottom > r.bottom + 1))
      faults.text.push(`${e.getAttribute('aria-label').slice(0, 60)}: ${Math.round(b.left - r.left)}..${Math.round(b.right - r.left)} of ${Math.round(r.width)}, ${Math.round(b.top - r.top)}..${Math.round(b.bottom - r.top)} of ${Math.round(r.height)}`);
  }
}

const parts = (colour) => {
  const n = (colour.match(/[\d.]+/g) || []).map(Number);
  return n.length > 3 ? n : [...n, 1];
};
const over = (top, below) => [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]);
const ground = (e) => {
  const layers = [];
  for (let p = e; p; p = p.parentElement) {
    const c = parts(getComputedStyle(p).backgroundColor);
    if (c[3] > 0) layers.push(c);
    if (c[3] === 1) break;
  }
  let colour = [255, 255, 255];
  while (layers.length) colour = over(layers.pop(), colour);
  return colour;
};
const luminance = (c) => {
  const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const check = (e, colour, behind) => {
  const [dark, light] = [luminance(over(colour, behind)), luminance(behind)].sort((x, y) => x - y);
  const ratio = (light + 0.05) / (dark + 0.05);
  if (ratio < 4.5) faults.contrast.push(`${ratio.toFixed(2)}: ${where(e)}`);
};
for (const e of document.body.querySelectorAll('*:not(svg *)'))
  if ([...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) && e.getBoundingClientRect().width)
    check(e, parts(getComputedStyle(e).color), ground(e));
for (const e of document.querySelectorAll('svg text, svg g.text use')) {
  const fill = parts(getComputedStyle(e).fill);
  const b = e.getBoundingClientRect();
  // what was drawn before it in the same figure and lies under all of it
  let behind = ground(e.closest('svg').parentElement);
  for (const shape of e.closest('svg').querySelectorAll('path, rect')) {
    if (shape.compareDocumentPosition(e) & Node.DOCUMENT_POSITION_PRECEDING) break;
    const s = getComputedStyle(shape), r = shape.getBoundingClientRect();
    if (s.fill === 'none' || shape.closest('defs, clipPath, .text')) continue;
    const x = b.left + b.width / 2, y = b.top + b.height / 2;
    if (r.left > b.left || r.right < b.right || r.top > b.top || r.bottom < b.bottom) continue;
    const hit = shape.getScreenCTM() && shape.isPointInFill
      && shape.isPointInFill(new DOMPoint(x, y).matrixTransform(shape.getScreenCTM().inverse()));
    if (hit) {
      const c = parts(s.fill);
      c[3] *= Number(s.fillOpacity) * Number(s.opacity);
      behind = over(c, behind);
    }
  }
  fill[3] *= Number(getComputedStyle(e).fillOpacity) * Number(getComputedStyle(e).opacity);
  check(e, fill, behind);
}
faults.contrast = [...new Set(faults.contrast)];

let level = 0;
for (const e of document.querySelectorAll('h1, h2, h3, h4, h5, h6')) {
  const own = Number(e.tagName[1]);
  if (own > level + 1 || (own === 1 && level)) faults.headings.push(`${where(e)} after h${level}`);
  if (!e.textContent.trim()) faults.headings.push(`an empty ${e.tagName}`);
  level = own;
}
for (const e of document.querySelectorAll('a[href^="#"]'))
  if (!document.getElementById(e.getAttribute('href').slice(1))) faults.links.push(where(e));
return faults;
