-- Internal.
-- The examples at some positions of a dataset version, in order. Parameters: version_id, low, high, positions (a list).
select r.position, e.example_id::varchar as example_id, e.system, e.turns, e.instruction, e.input, e.output
from dataset_rows r
join examples e using (example_id)
where r.version_id = $version_id
  and r.position between $low and $high
  and r.position in (select unnest($positions::bigint[]))
order by r.position;
