-- Internal.
-- Some rows of a dataset version with what their file held beside them, in order. Parameters: version_id, start, count.
select r.position, e.example_id::varchar as example_id, e.system, e.turns, e.instruction, e.input, e.output, r.other
from dataset_rows r
join examples e using (example_id)
where r.version_id = $version_id::uuid
order by r.position
limit $count offset $start;
