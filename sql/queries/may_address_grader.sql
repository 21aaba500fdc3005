-- Internal.
-- The distinct rows of a dataset version whose text may be addressed to the grader, with how many rows hold each.
-- Parameters: version_id, pattern (an expression of RE2).
select any_value(e.instruction) as instruction, any_value(e.input) as input, any_value(e.output) as output,
    any_value(e.system) as system, count(*) as rows
from dataset_rows r
join examples e using (example_id)
where r.version_id = $version_id::uuid
  and regexp_matches(concat_ws(chr(10), e.instruction, e.input, e.output, e.system), $pattern)
group by example_id
order by example_id;
