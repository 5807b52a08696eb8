// The elements: symbols, names, and where they stand in the periodic table.

const NAMES = `
H Hydrogen He Helium Li Lithium Be Beryllium B Boron C Carbon N Nitrogen O Oxygen F Fluorine Ne Neon Na Sodium
Mg Magnesium Al Aluminium Si Silicon P Phosphorus S Sulfur Cl Chlorine Ar Argon K Potassium Ca Calcium Sc Scandium
Ti Titanium V Vanadium Cr Chromium Mn Manganese Fe Iron Co Cobalt Ni Nickel Cu Copper Zn Zinc Ga Gallium Ge Germanium
As Arsenic Se Selenium Br Bromine Kr Krypton Rb Rubidium Sr Strontium Y Yttrium Zr Zirconium Nb Niobium Mo Molybdenum
Tc Technetium Ru Ruthenium Rh Rhodium Pd Palladium Ag Silver Cd Cadmium In Indium Sn Tin Sb Antimony Te Tellurium
I Iodine Xe Xenon Cs Caesium Ba Barium La Lanthanum Ce Cerium Pr Praseodymium Nd Neodymium Pm Promethium Sm Samarium
Eu Europium Gd Gadolinium Tb Terbium Dy Dysprosium Ho Holmium Er Erbium Tm Thulium Yb Ytterbium Lu Lutetium Hf Hafnium
Ta Tantalum W Tungsten Re Rhenium Os Osmium Ir Iridium Pt Platinum Au Gold Hg Mercury Tl Thallium Pb Lead Bi Bismuth
Po Polonium At Astatine Rn Radon Fr Francium Ra Radium Ac Actinium Th Thorium Pa Protactinium U Uranium Np Neptunium
Pu Plutonium Am Americium Cm Curium Bk Berkelium Cf Californium Es Einsteinium Fm Fermium Md Mendelevium No Nobelium
Lr Lawrencium
`.trim().split(/\s+/);

const STARTS = [1, 3, 11, 19, 37, 55, 87, 119];
const F_BLOCK = [57, 89];

/** Return [row, column] of an atomic number; the f block stands below the rest. */
function place(z) {
  const row = STARTS.findIndex((start) => start > z);
  const at = z - STARTS[row - 1];
  const f = F_BLOCK[row - 6];
  if (row >= 6 && z >= f && z < f + 15) return [row + 3, z - f + 3];
  const width = STARTS[row] - STARTS[row - 1];
  const fromEnd = width - at;
  if (row === 1) return [1, z === 1 ? 1 : 18];
  if (row <= 3) return [row, at < 2 ? at + 1 : 19 - fromEnd];
  return [row, at < 2 || row <= 5 ? at + 1 : 19 - fromEnd];
}

export const ELEMENTS = Array.from({ length: NAMES.length / 2 }, (_, i) => {
  const [row, column] = place(i + 1);
  return { z: i + 1, symbol: NAMES[2 * i], name: NAMES[2 * i + 1], row, column };
});
