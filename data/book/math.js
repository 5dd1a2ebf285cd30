// Browsers do not apply `mathvariant`, so letters of such alphabets become characters of their own.
const ALPHABETS = {
  'double-struck': [0x1d538, 'C\u2102H\u210dN\u2115P\u2119Q\u211aR\u211dZ\u2124'],
  script: [0x1d49c, 'B\u212cE\u2130F\u2131H\u210bI\u2110L\u2112M\u2133R\u211b'],
};

// Nor do they put a space between a function and its argument, as in log p.
function spaceFunctions() {
  for (const node of document.querySelectorAll('math mo')) {
    const next = node.nextElementSibling?.textContent ?? '(';
    if (node.textContent === '\u2061' && !/^[([]/.test(next)) node.setAttribute('rspace', '.17em');
  }
}

addEventListener('load', () => {
  spaceFunctions();
  for (const [name, [start, others]] of Object.entries(ALPHABETS)) {
    for (const node of document.querySelectorAll(`math [mathvariant="${name}"]`)) {
      node.textContent = node.textContent.replace(/[A-Z]/g, letter => {
        const i = others.indexOf(letter);
        return i < 0 ? String.fromCodePoint(start + letter.charCodeAt() - 65) : others[i + 1];
      });
      node.removeAttribute('mathvariant');
    }
  }
});
