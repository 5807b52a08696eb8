from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from making import floats, ints, make
from trajmill import recipe
from trajmill.curation import RULES, curate

DEFAULT = recipe.Rules()
ORDER = (
    "license deprecated task_type unsupported_functional elements oqmd_duplicate ordered_sites site_order "
    "relaxation_record relaxation_converged targets zero_forces electronic_convergence geometry duplicate_frames "
    "final_frame_outlier energy_window max_force"
).split()
SOURCES = {
    "license": {"mp"},
    "deprecated": {"mp"},
    "task_type": {"mp", "oqmd", "vasp"},
    "electronic_convergence": {"mp", "vasp"},
    "zero_forces": {"oqmd"},
} | {name: {"oqmd"} for name in ORDER[5:10]}


def owners(rejections):
    return {r.relaxation_step: r.rejected_by for r in rejections}


def test_order_and_reach():
    assert [r.name for r in RULES] == ORDER
    assert {r.name: set(r.sources) for r in RULES if r.sources} == SOURCES


def test_the_recipe_lists_the_rules_in_this_order():
    names = [name for name in ORDER if name != "final_frame_outlier"]  # shares its section with the window
    assert [*names, "duplicate_trajectory", "primary_agreement"] == list(recipe.Rules.model_fields)


@pytest.mark.parametrize("name", sorted(SOURCES))
@pytest.mark.parametrize("source", recipe.SOURCES)
def test_a_rule_keeps_to_its_sources(name, source):
    zero = np.zeros((1, 3, 3))
    t = make(
        1,
        ("H", "O", "F"),
        source=source,
        license="BY-NC" if name == "license" else "BY-C",
        deprecated="withdrawn" if name == "deprecated" else None,
        task_type="Static" if name == "task_type" else "Structure Optimization",
        electronic_steps=ints(60 if name == "electronic_convergence" else 5),
        nelm=ints(60),
        findings={name: "found"} if name in ORDER[5:10] else {},
        **({"forces": zero} if name == "zero_forces" else {}),
    )
    rest, rejections = curate([t], DEFAULT)[0]
    if source in SOURCES[name]:
        assert rest is None
        assert [r.rejected_by for r in rejections] == [name]
    else:
        assert rest is t
        assert rejections == []


def test_a_good_trajectory_is_kept_as_it_is():
    t = make(5)
    assert curate([t], DEFAULT)[0] == (t, [])


@pytest.mark.parametrize("source", recipe.SOURCES)
def test_one_frame_is_a_trajectory(source):
    t = make(1, source=source, license="BY-C", electronic_steps=ints(5), nelm=ints(60))
    assert curate([t], DEFAULT)[0] == (t, [])


def test_the_first_rule_owns():
    """Frame 1 lacks its energy, has a broken cell and repeats nothing; the whole record has no licence either."""
    t = make(3, source="mp", electronic_steps=ints(60, 60, 5), nelm=ints(60, 60, 60), license="BY-C")
    t.energy[1] = np.nan
    t.lattice[:2] = 0.0
    rest, rejections = curate([t], DEFAULT)[0]
    assert owners(rejections) == {1: "targets", 0: "electronic_convergence"}
    assert rest.relaxation_step.tolist() == [2]
    _, rejections = curate([make(3, source="mp", energy=t.energy, license="BY-NC")], DEFAULT)[0]
    assert [(r.rejected_by, r.n_frames, r.relaxation_step) for r in rejections] == [("license", 3, None)]


def test_a_rule_sees_what_the_rules_before_it_left():
    """Without its unreadable last frame the trajectory ends 2 eV/atom higher, and that is what the window takes."""
    t = make(4, energy=floats(0.1, 0.0, 4.0, np.nan))
    rest, rejections = curate([t], DEFAULT)[0]
    assert rest is None
    assert [(r.rejected_by, r.n_frames) for r in rejections] == [("targets", 1), ("final_frame_outlier", 3)]


def test_the_end_is_recorded_when_the_final_frame_falls():
    t = make(4, relaxation_step=ints(0, 1, 2, 3), notes=("before",))
    t.energy[2:] = np.nan
    rest, _ = curate([t], DEFAULT)[0]
    assert rest.notes == ("before", "ends at step 1: step 3 was rejected by targets")
    t = make(4, source="mp", license="BY-C", electronic_steps=ints(5, 5, 5, 60), nelm=ints(60, 60, 60, 60))
    assert curate([t], DEFAULT)[0][0].notes == ("ends at step 2: step 3 was rejected by electronic_convergence",)


def test_no_end_is_recorded_when_another_frame_falls():
    t = make(4)
    t.energy[1] = np.nan
    assert curate([t], DEFAULT)[0][0].notes == ()


def test_numbering_of_the_run_is_kept():
    t = make(5, relaxation_step=ints(2, 3, 5, 6, 7), relaxation_number=ints(0, 0, 1, 1, 1))
    t.energy[[1, 2]] = np.nan
    rest, rejections = curate([t], DEFAULT)[0]
    assert rest.relaxation_step.tolist() == [2, 6, 7]
    assert rest.relaxation_number.tolist() == [0, 1, 1]
    assert [(r.relaxation_step, r.relaxation_number) for r in rejections] == [(3, 0), (5, 1)]


def test_identity_of_a_rejection():
    t = make(2, relaxation_number=ints(0, 1))
    t.energy[1] = np.nan
    (rejection,) = curate([t], DEFAULT)[0][1]
    assert (rejection.source, rejection.asset, rejection.task_id, rejection.trajectory_id, rejection.immutable_id) == (
        t.source, t.asset, t.task_id, t.trajectory_id, t.immutable_id
    )  # fmt: skip
    assert (rejection.functional, rejection.run_type, rejection.n_frames) == ("pbe", "GGA", 1)
    (whole,) = curate([make(2, ("Yb",), relaxation_number=ints(0, 1))], DEFAULT)[0][1]
    assert (whole.relaxation_number, whole.relaxation_step) == (None, None)  # of no single stage
    assert whole.detail == "contains Yb"


def test_a_rule_that_is_off_rejects_nothing():
    t = make(3, energy=floats(10.0, 0.0, 0.0))
    off = recipe.Rules.model_validate({"energy_window": {"enabled": False}})
    assert curate([t], DEFAULT)[0][0].relaxation_step.tolist() == [1, 2]
    assert curate([t], off)[0][0] is t


def test_inputs_pass_the_label_rules_but_not_the_geometry():
    t = make(3, source="oqmd", is_input=np.array([True, False, False]))
    t.energy[0] = t.forces[0] = t.stress[0] = np.nan
    assert curate([t], DEFAULT)[0][0] is t
    t.positions[0, 1] = t.positions[0, 0]
    assert owners(curate([t], DEFAULT)[0][1]) == {0: "geometry"}


HOLES = st.lists(
    st.tuples(
        st.sampled_from(["energy", "forces", "stress", "lattice", "positions"]),
        st.integers(0, 7),
        st.sampled_from([np.nan, np.inf, 0.0, 1e3]),
    ),
    max_size=6,
)


@given(
    st.integers(1, 8),
    st.sampled_from(["mp", "alexandria", "oqmd"]),
    st.lists(st.sampled_from(["H", "Yb", "O"]), min_size=1, max_size=3),
    HOLES,
    st.sets(st.sampled_from(sorted(recipe.Rules.model_fields))),
    st.integers(0, 2**32),
)
def test_nothing_vanishes(n, source, symbols, holes, toggled, seed):
    """Whatever is broken and whichever rules run: kept and rejected frames are the frames that came in."""
    random = np.random.default_rng(seed)
    t = make(
        n,
        symbols,
        source=source,
        license="BY-C",
        energy=random.choice([0.0, 0.1, 2.0, -3.0], n) * len(symbols),
        electronic_steps=random.choice([-1, 5, 60], n).astype(np.int32),
        nelm=np.full(n, 60, np.int32),
        is_input=random.random(n) < 0.2 if source == "oqmd" else None,
        relaxation_step=np.cumsum(random.integers(1, 3, n)).astype(np.int32),
    )
    for field, frame, value in holes:
        getattr(t, field)[frame % n].flat[0] = value if field != "energy" else 0
        if field == "energy":
            t.energy[frame % n] = value
        elif value == 0.0:
            getattr(t, field)[frame % n] = 0.0
    enabled = {
        name: {"enabled": getattr(DEFAULT, name).enabled != (name in toggled)} for name in type(DEFAULT).model_fields
    }
    rest, rejections = curate([t], recipe.Rules.model_validate(enabled))[0]
    kept = [] if rest is None else rest.relaxation_step.tolist()
    assert rest is None or len(rest)
    assert len(kept) + sum(r.n_frames for r in rejections) == n
    single = [r.relaxation_step for r in rejections if r.relaxation_step is not None]
    assert max(Counter([*kept, *single]).values(), default=1) == 1
    assert set(kept) | set(single) <= set(t.relaxation_step.tolist())
    for rejection in rejections:
        section = "energy_window" if rejection.rejected_by == "final_frame_outlier" else rejection.rejected_by
        assert enabled[section]["enabled"]
        assert rejection.detail


# --- screens


@st.composite
def odd_trajectories(draw):
    """Draw a trajectory with all that rules with a screen look for."""
    n, atoms = draw(st.integers(1, 5)), draw(st.integers(0, 2))
    t = make(n, ("O",) * atoms)
    values = st.sampled_from([0.0, -1.0, -1.0, 0.4, 5.0, np.nan, np.inf])
    energy = np.array(draw(st.lists(values, min_size=n, max_size=n)))
    forces = np.array(draw(st.lists(values, min_size=n * atoms * 3, max_size=n * atoms * 3))).reshape(n, atoms, 3)
    inputs = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return replace(t, energy=energy, forces=forces, is_input=draw(st.sampled_from([None, inputs])))


@pytest.mark.filterwarnings("ignore:invalid value|divide by zero")
@given(drawn=st.lists(odd_trajectories(), min_size=1, max_size=6))
def test_a_screen_changes_no_verdict(drawn):
    screened = [rule for rule in RULES if rule.screen is not None]
    assert [rule.name for rule in screened] == ["targets", "duplicate_frames", "final_frame_outlier", "energy_window"]
    for rule in screened:
        options = getattr(DEFAULT, rule.section or rule.name)
        alone = [rule.reject(t, options) for t in drawn]
        assert [verdict or None for verdict in rule.verdicts(drawn, options)] == [verdict or None for verdict in alone]
