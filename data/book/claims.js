// Shows the rows of the table of claims that the menus choose. The choice stands in the address,
// so that it can be linked to: claims.html#method=limber&verdict=fails
const form = document.getElementById('claims-filter');
const rows = [...document.querySelectorAll('#claims tbody tr')];
const count = document.getElementById('claims-count');

function show() {
  const chosen = [...new FormData(form)].filter(([, value]) => value);
  const fits = (row, [name, value]) => name === 'words'
    ? row.textContent.toLowerCase().includes(value.toLowerCase())
    : row.dataset[name] === value;
  for (const row of rows) row.hidden = !chosen.every(choice => fits(row, choice));
  const shown = rows.filter(row => !row.hidden).length;
  count.textContent = chosen.length ? `${shown} of ${rows.length} results` : `${shown} results`;
  return chosen;
}

function fromAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const field of form.elements) field.value = wanted.get(field.name) ?? '';
  show();
}

form.addEventListener('input', () => {
  const hash = new URLSearchParams(show()).toString();
  history.replaceState(null, '', hash ? `#${hash}` : location.pathname + location.search);
});
form.addEventListener('submit', event => event.preventDefault());
addEventListener('hashchange', fromAddress);
form.hidden = false;
fromAddress();
