"""Run studies: cells, engines, data, models, reports and the command line."""
