-- Internal.
-- The distinct rows of a dataset version, each where it stands first. Parameters: version_id.
select position, example_id::varchar as example_id
from first_positions
where version_id = $version_id::uuid
order by position;
