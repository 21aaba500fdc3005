-- Internal.
-- What a setup has scored in an audit, by kind and side of the pair: scores and lengths of the output, counted.
-- Parameters: audit_id, setup_id.
with scored as (
    select * from audited_pairs
    where audit_id = $audit_id::uuid and setup_id = $setup_id::uuid
      and original_score is not null and changed_score is not null
)
select kind, true as original, original_score as score, original_chars as output_chars, count(*) as rows
from scored
group by all
union all
select kind, false, changed_score, changed_chars, count(*)
from scored
group by all
order by kind, original, score, output_chars;
