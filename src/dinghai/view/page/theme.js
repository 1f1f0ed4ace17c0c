// Before anything is painted: the theme that the reader chose here, where that was not the system's.
(() => {
  let theme = null;
  try { theme = localStorage.getItem("dinghai-theme"); } catch { /* storage is switched off: the system's theme it is */ }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
