-- Internal.
-- The distinct rows of a dataset version that a reference has scored, in their order: its score, and how many
-- characters, words and lines the output has. Parameters: version_id, grader_id, rubric_id (the reference's).
select
    f.example_id, g.score,
    length(e.output) as output_chars,
    len(regexp_extract_all(e.output, '\S+')) as output_words,
    len(regexp_extract_all(trim(e.output, chr(10) || chr(13) || ' '), '\n')) + 1 as output_lines
from first_positions f
join examples e using (example_id)
join (
    select example_id, score from graded where grader_id = $grader_id::uuid and rubric_id = $rubric_id::uuid
) g using (example_id)
where f.version_id = $version_id::uuid and g.score is not null
order by f.position;
