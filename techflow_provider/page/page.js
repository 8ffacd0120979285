// Airflow's frame has Airflow's theme, and its sandbox lets no link leave it: links are opened from outside.
if (parent !== window) {
  const outside = parent.document;
  const takeTheme = () => {
    const isDark = outside.documentElement.classList.contains("dark");
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
  };
  new MutationObserver(takeTheme).observe(outside.documentElement, { attributeFilter: ["class"] });
  takeTheme();
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^=".."], a[href^="http"]');
    if (!link) return;
    event.preventDefault();
    const opener = outside.createElement("a");
    opener.href = link.href;
    opener.rel = "noreferrer";
    opener.target = link.origin === location.origin ? "_self" : "_blank";
    opener.click();
  });
}
