"""Every store passes the same kit."""

import pytest

from servers import postgres
from stores.conformance import StoreConformance


class TestDelta(StoreConformance):
    @pytest.fixture
    def address(self, tmp_path):
        return str(tmp_path / "store")


class TestPostgres(StoreConformance):
    @pytest.fixture
    def address(self):
        with postgres.schema() as address:
            yield address
