"""How right labels are: judged against the truth, without labelling anything again."""
