"""The three dashboards as code: `python -m deploy.grafana` writes dashboards/*.json. panels.py holds their parts."""
