"""{Prometheus name: key of the row}, of the gauges that have no label of their own."""

from common.measurements import MEASUREMENTS

ROW_GAUGES = {m.gauge: m.name for m in MEASUREMENTS if m.gauge and not m.label}
