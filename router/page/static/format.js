// Numbers and times, in as few characters as say what is meant.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const NONE = "–";

const isKnown = (value) => value !== null && value !== undefined && !Number.isNaN(value);

/** 1,234 or 12.3k or 4.56M. */
export function count(value) {
  if (!isKnown(value)) return NONE;
  if (value < 10_000) return whole.format(value);
  const [by, unit] = value < 1e6 ? [1e3, "k"] : value < 1e9 ? [1e6, "M"] : [1e9, "G"];
  const scaled = value / by;
  return `${scaled.toFixed(scaled < 10 ? 2 : scaled < 100 ? 1 : 0)}${unit}`;
}

/** A number of things a second. */
export function rate(value) {
  if (!isKnown(value)) return NONE;
  return value === 0 ? "0" : value < 10 ? value.toFixed(1) : count(value);
}

export function percent(value) {
  if (!isKnown(value)) return NONE;
  const share = value * 100;
  return share > 0 && share < 1 ? "<1%" : share < 100 && share > 99 ? ">99%" : `${share.toFixed(0)}%`;
}

/** Of seconds: 8 ms, 1.25 s, 3 min. */
export function duration(value) {
  if (!isKnown(value)) return NONE;
  if (value < 0.0005) return "0 ms";
  if (value < 1) return `${(value * 1e3).toFixed(0)} ms`;
  if (value < 10) return `${value.toFixed(2)} s`;
  if (value < 100) return `${value.toFixed(0)} s`;
  if (value < 5400) return `${(value / 60).toFixed(0)} min`;
  return `${(value / 3600).toFixed(0)} h`;
}

export function bytes(value) {
  if (!isKnown(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${value.toFixed(at && value < 10 ? 1 : 0)} ${units[at]}`;
}

/** Time of day, of seconds since the epoch. */
export const clock = (seconds) => time.format(new Date(seconds * 1000));

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
