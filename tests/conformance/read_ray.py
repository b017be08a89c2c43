"""Ray Data's own reader, without its decoder."""

import ray
from expected import Expected

expected = Expected.from_command_line()
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, address="local")
ray.data.DataContext.get_current().enable_progress_bars = False
rows = ray.data.read_webdataset(expected.tars, decoder=None).take_all()
expected.check_members(
    (row["__key__"], {name: data for name, data in row.items() if not name.startswith("__")}) for row in rows
)
