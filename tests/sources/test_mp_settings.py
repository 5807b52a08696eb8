import warnings

import pytest

from trajmill.sources import mp_settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pymatgen.io.vasp.sets import MPRelaxSet

CONFIG = MPRelaxSet.CONFIG


@pytest.mark.parametrize("anion", ["O", "F"])
def test_u_values_are_those_of_mprelaxset(anion):
    prescribed = {e: u for e, u in CONFIG["INCAR"]["LDAUU"][anion].items() if u}
    assert prescribed == mp_settings.U_VALUES


def test_u_is_prescribed_with_o_and_f_only():
    assert set(CONFIG["INCAR"]["LDAUU"]) == {"O", "F"}


def test_potentials_are_those_of_mprelaxset():
    ours = {e: name for e, name in mp_settings.POTENTIALS.items() if CONFIG["POTCAR"].get(e) != name}
    assert ours == {}
    assert set(CONFIG["POTCAR"]) == set(mp_settings.POTENTIALS)


@pytest.mark.parametrize(
    ("elements", "u"),
    [
        ("Fe O", {"Fe": 5.3}),
        ("F V", {"V": 3.25}),
        ("Co Fe O", {"Co": 3.32, "Fe": 5.3}),
        ("Fe S", {}),
        ("Mg O", {}),
        ("Fe", {}),
    ],
)
def test_hubbard_u(elements, u):
    assert mp_settings.hubbard_u(elements.split()) == u


@pytest.mark.parametrize(("elements", "names"), [("Fe O", ("Fe_pv", "O")), ("Yb", ("Yb_2",)), ("Cf O", None), ("", ())])
def test_potentials(elements, names):
    assert mp_settings.potentials(elements.split()) == names
