-- The machine account: seconds of runs, and their cost where ALPASIFT_USD_PER_HOUR was set. Parameters:
-- none.
select seconds, usd, runs_without_rate from machine;
