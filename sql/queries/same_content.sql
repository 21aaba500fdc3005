-- Internal.
-- The dataset versions that were read from a file of this content, newest first. Parameters: sha256.
select version_id, label, rows, row_format, json_extract(facts, '$.mapping')::varchar as mapping
from datasets
where sha256 = $sha256
order by imported_at desc, label;
