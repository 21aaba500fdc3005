-- Internal.
-- What a run has spent. Parameters: run_id.
select coalesce(sum(spent_usd), 0)::decimal(38, 15) as spent_usd from ledger where run_id = $run_id::uuid;
