"""Looking into networks and pipelines: tables, maps, decisions, and pictures of them."""
