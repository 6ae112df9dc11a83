// Before the page is painted: the theme that this browser was set to, if it was.
"use strict";
{
  let kept = null;
  try { kept = localStorage.getItem("warmroute-theme"); } catch { /* nothing may be kept here */ }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
}
