"""Ray Data's own reader, without its decoder: of the tars, and of the folder that they are in."""

import ray
from expected import Expected

expected = Expected.from_command_line()
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, address="local")
ray.data.DataContext.get_current().enable_progress_bars = False
for paths in (expected.tars, str(expected.dataset / "shards")):
    read = ray.data.read_webdataset(paths, decoder=None)
    expected.check_members(
        # Rows have the columns of all: what a document hasn't is NaN.
        (row["__key__"], {name: data for name, data in row.items() if name[0] != "_" and isinstance(data, bytes)})
        for row in read.take_all()
    )
expected.check_decoded(expected.samples_of("Ray Data"))
