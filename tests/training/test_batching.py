"""Models that are asked about many structures at once say of each what they say of it alone."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

import trajmill
from factories import make_store, make_trajectory
from trajmill.errors import MissingExtraError, ModelError
from trajmill.training import batching
from trajmill.training.batching import Batched, OneByOne, model_of
from trajmill.training.calculators import calculator
from trajmill.training.predictions import predict
from trajmill.training.relaxing import relax
from trajmill.views import Geometry

# torch, MACE and torch-sim warn of each other
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

CLOSE = 1e-6
"""eV, eV/A and eV/A^3: predictions in a batch and alone."""


def geometry(atoms):
    return Geometry(atoms.numbers.astype(np.int64), atoms.cell[:].copy(), atoms.positions.copy())


def crystals():
    """Of one to 8 atoms, skewed; one is left-handed, one has atoms outside of its cell."""
    rng = np.random.default_rng(0)
    made = [bulk("Cu"), bulk("Au", cubic=True), bulk("CuAu", "rocksalt", a=5.0, cubic=True), bulk("Cu", cubic=True)]
    for atoms in made:
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(0, 0.05, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    made[1].set_cell(made[1].cell[[1, 0, 2]], scale_atoms=False)
    made[2].positions += 2 * made[2].cell[0]
    return [geometry(atoms) for atoms in made]


@pytest.fixture(scope="module")
def mace(tmp_path_factory):
    """A MACE model of copper and gold with weights drawn at random, large enough to be seen."""
    import torch
    from mace import modules
    from mace.calculators import MACECalculator
    from mace.modules.models import o3  # e3nn loads only after MACE
    from mace.tools.torch_tools import default_dtype, dtype_dict

    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    with default_dtype(dtype_dict["float64"]):
        model = modules.ScaleShiftMACE(
            r_max=4.0, num_bessel=6, num_polynomial_cutoff=5, max_ell=2, interaction_cls=block,
            interaction_cls_first=block, num_interactions=2, num_elements=2, hidden_irreps=o3.Irreps("8x0e"),
            MLP_irreps=o3.Irreps("8x0e"), gate=torch.nn.functional.silu, atomic_energies=np.array([-3.0, -2.0]),
            avg_num_neighbors=20.0, atomic_numbers=[29, 79], correlation=2, radial_type="bessel",
            atomic_inter_scale=100.0, atomic_inter_shift=0.0,
        )  # fmt: skip
        file = tmp_path_factory.mktemp("mace") / "small.model"
        torch.save(model, file)
    return MACECalculator(model_paths=str(file), device="cpu", default_dtype="float64")


def differences(one, other):
    return [max(float(np.abs(a - b).max()) for a, b in zip(x, y, strict=True)) for x, y in zip(one, other, strict=True)]


class TestMace:
    def test_answers_are_those_of_one_by_one(self, mace):
        alone = OneByOne(mace).predict(crystals())
        together = Batched(mace).predict(crystals())
        assert max(float(np.abs(answer.forces).max()) for answer in alone) > 0.1, "there is something to see"
        assert max(differences(alone, together)) < CLOSE

    def test_atoms_that_are_split_otherwise_than_before(self, mace):
        """torch-sim 0.3 takes the split into structures from the batch before where the elements are the same."""
        copper = bulk("Cu", cubic=True)
        model = Batched(mace)
        (one,) = model.predict([geometry(copper)])
        for sizes in ((1, 1), (2,), (1, 1), (2, 1), (1, 2)):
            answers = model.predict([geometry(copper.repeat((size, 1, 1))) for size in sizes])
            assert [a.energy for a in answers] == pytest.approx([one.energy * size for size in sizes], abs=CLOSE)

    def test_one_that_it_cannot_do_does_not_lose_the_others(self, mace):
        alone = OneByOne(mace).predict(crystals())
        cell = crystals()[0]
        strange = cell._replace(numbers=np.array([30]))
        broken = cell._replace(positions=np.full((1, 3), np.nan))
        found = Batched(mace).predict([*crystals()[:2], strange, *crystals()[2:], broken])
        assert max(differences(alone, found[:2] + found[3:5])) < CLOSE
        assert isinstance(found[2], str)
        assert isinstance(found[5], str)

    def test_batches_are_halved_where_memory_is_too_small(self, mace, monkeypatch):
        model = Batched(mace, atoms=1000)
        answers, sizes = model._answers, []

        def small(geometries):
            sizes.append(sum(len(g.numbers) for g in geometries))
            if sizes[-1] > 8:
                raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
            return answers(geometries)

        monkeypatch.setattr(model, "_answers", small)
        assert max(differences(OneByOne(mace).predict(crystals()), model.predict(crystals()))) < CLOSE
        assert sizes == [17, 5, 12, 8, 4]
        assert model.atoms_at_once == 6

    def test_predictions_of_a_dataset(self, mace, tmp_path):
        frames = [make_trajectory(f"mp-{i}", n_frames=3, symbols=("Cu", "Au")[: 1 + i % 2]) for i in range(5)]
        make_store(tmp_path / "store", [*frames, make_trajectory("mp-9")])
        dataset = trajmill.open(tmp_path / "store")
        seen = []
        files = [
            predict(dataset, model, tmp_path / f"{i}.parquet", report=seen.append)
            for i, model in enumerate((OneByOne(mace), Batched(mace, atoms=5), mace))
        ]
        alone, together, by_itself = (pq.read_table(file).to_pylist() for file in files)
        assert seen == [18, 18, 18]
        assert [row["id"] for row in together] == [row["id"] for row in alone]
        for one, other, third in zip(alone, together, by_itself, strict=True):
            assert (one["failure"] is None) == (other["failure"] is None) == ("mp-9" not in one["id"])
            if one["failure"] is None:
                for name in ("energy_predicted", "forces_predicted", "stress_predicted"):
                    np.testing.assert_allclose(other[name], one[name], atol=CLOSE, rtol=0)
                    np.testing.assert_allclose(third[name], one[name], atol=CLOSE, rtol=0)

    def test_relaxations_are_those_of_one_by_one(self, mace, tmp_path):
        runs = [make_trajectory(f"mp-{i}", symbols=("Cu", "Au")[: 1 + i % 2]) for i in range(5)]
        make_store(tmp_path / "store", [*runs, make_trajectory("mp-9")])
        dataset = trajmill.open(tmp_path / "store")
        rows = []
        for model in (OneByOne(mace), Batched(mace, atoms=4)):
            found = relax(dataset, model, tmp_path / "r.parquet", steps=10)
            assert (found.relaxations, found.failed) == (6, 1)
            rows.append(pq.read_table(tmp_path / "r.parquet").to_pylist())
        for one, other in zip(*rows, strict=True):
            assert one["trajectory_id"] == other["trajectory_id"]
            assert (one["converged"], one["steps"], one["space_group"]) == (
                other["converged"], other["steps"], other["space_group"]
            )  # fmt: skip
            if one["failure"] is None:
                assert one["energy_error"] == pytest.approx(other["energy_error"], abs=CLOSE)
                assert one["volume_change"] == pytest.approx(other["volume_change"], abs=CLOSE)

    def test_a_model_of_torch_sims_own_will_do(self, mace):
        import torch
        from torch_sim.models.mace import MaceModel

        model = model_of(MaceModel(mace.models[0], device=torch.device("cpu")))
        assert isinstance(model, Batched)
        assert max(differences(OneByOne(mace).predict(crystals()), model.predict(crystals()))) < CLOSE

    def test_what_torch_sim_would_ask_otherwise_is_asked_one_by_one(self, mace, monkeypatch):
        assert isinstance(model_of(mace), Batched)
        monkeypatch.setattr(mace, "available_heads", ["Default", "pt_head"])
        assert isinstance(model_of(mace), OneByOne)
        with pytest.raises(ModelError, match="MACECalculator cannot be asked about many structures at once"):
            Batched(mace)

    def test_without_torch_sim_the_extra_is_named_where_it_was_asked_for(self, mace, monkeypatch):
        monkeypatch.setattr(batching, "find_spec", lambda _: None)
        assert isinstance(model_of(mace), OneByOne)

        def missing(module, *, extra):
            raise MissingExtraError(f"pip install 'trajmill[{extra}]'")

        monkeypatch.setattr(batching, "require", missing)
        with pytest.raises(MissingExtraError, match=r"trajmill\[torchsim\]"):
            Batched(mace)


def test_other_calculators_are_asked_one_by_one():
    model = model_of(EMT())
    assert isinstance(model, OneByOne)
    assert model_of(model) is model
    assert model.atoms_at_once == 1
    with pytest.raises(ModelError, match="EMT cannot be asked about many structures at once; a MACE model with one"):
        Batched(EMT())


def test_a_model_that_fails_leaves_torch_as_it_was():
    """MACE does not, where it does not know an element, and the next model stumbled on that."""

    class Failing(EMT):
        def calculate(self, *_):
            torch.set_default_dtype(torch.float64)
            raise ValueError("an element")

    before = torch.get_default_dtype()
    (answer,) = OneByOne(Failing()).predict([geometry(bulk("Cu"))])
    assert answer == "ValueError: an element"
    assert torch.get_default_dtype() == before == torch.float32


@pytest.mark.parametrize("name", ["os:getcwd", "ase.atoms:Atoms"])
def test_what_is_no_calculator_is_refused(name):
    with pytest.raises(ModelError, match=rf"{name}: gives a (str|Atoms), which is no calculator"):
        calculator(name)


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "my.model").write_text("[no model]")
    with pytest.raises(ModelError, match=r"my\.model: cannot be loaded \(UnpicklingError"):
        calculator(f"mace:{tmp_path / 'my.model'}")


def test_sevennet_is_asked_one_by_one():
    """Runs where SevenNet is installed, which is not where MACE is: `pip install -e '.[sevennet]'` elsewhere."""
    pytest.importorskip("sevenn")
    pbe, r2scan = calculator("sevennet"), calculator("sevennet:7net-mf-0:R2SCAN")
    assert isinstance(model_of(pbe), OneByOne)
    salt = [geometry(bulk("NaCl", "rocksalt", a=a)) for a in (5.5, 5.69, 5.9)]
    small, right, large = OneByOne(pbe).predict(salt)
    assert right.energy / 2 == pytest.approx(-3.40, abs=0.03), "PBE in VASP's potentials"
    assert small.energy > right.energy < large.energy
    assert np.trace(small.stress) < 0 < np.trace(large.stress)
    (other,) = OneByOne(r2scan).predict(salt[1:2])
    assert other.energy < right.energy - 1, "energies of another functional, and of other potentials"
    with pytest.raises(ModelError, match=r"modal argument missing .avail: .*R2SCAN"):
        calculator("sevennet:7net-mf-0")
    with pytest.raises(ModelError, match=r"sevennet:none: cannot be loaded .* 7net-l3i5, "):  # in one line
        calculator("sevennet:none")
