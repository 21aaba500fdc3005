-- Internal.
-- Every usable row of a dataset version: where it stands in its file, and its content's id. Parameters: version_id.
select position, example_id::varchar as example_id
from dataset_rows
where version_id = $version_id::uuid
order by position;
