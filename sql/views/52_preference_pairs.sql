-- One row per preference pair: the positions and contents of its two answers, of which the first was chosen.
create or replace view preference_pairs as
select
    d.label as dataset, c.position as chosen_position, r.position as rejected_position, e.system, e.turns,
    e.instruction, e.input, e.output as chosen, f.output as rejected, c.example_id as chosen_id,
    r.example_id as rejected_id, c.version_id
from dataset_rows c
join dataset_rows r on r.version_id = c.version_id and r.position = c.position + 1
join datasets d on d.version_id = c.version_id
join examples e on e.example_id = c.example_id
join examples f on f.example_id = r.example_id
where r.other = '{"$form":{"rest":true,"answer":"rejected"}}';
