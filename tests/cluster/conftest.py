"""The fixture with which the plugin of the workers runs on `FakeDask`."""

from tests.support.fake_dask import fake_dask

__all__ = ["fake_dask"]
