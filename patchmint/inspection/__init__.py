"""Looking into data sets: lists, lookups, statistics, codes, search, differences, gallery. What is shown, not how."""
