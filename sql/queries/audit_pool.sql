-- Internal.
-- The distinct rows of a dataset version in the order in which an audit takes them: by the draw of a seed and a row's
-- id. Parameters: version_id, seed (as text), row_limit.
select
    f.position, f.example_id::varchar as example_id, e.system, e.turns, e.instruction, e.input, e.output
from first_positions f
join examples e using (example_id)
where f.version_id = $version_id::uuid
order by md5('audit ' || $seed || ' ' || f.example_id::varchar)
limit $row_limit;
