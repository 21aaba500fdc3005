-- The dataset versions, in the order of their import. Parameters: none.
select label as dataset, rows, duplicates, skipped, row_format, source, imported_at
from datasets
order by imported_at, label;
