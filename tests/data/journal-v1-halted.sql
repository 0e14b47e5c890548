BEGIN TRANSACTION;
CREATE TABLE changes (first INTEGER PRIMARY KEY, hashes BLOB NOT NULL);
CREATE TABLE covered (ordinal INTEGER PRIMARY KEY);
CREATE TABLE generations (ordinal INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
CREATE TABLE outcomes (
    ordinal INTEGER PRIMARY KEY,
    line INTEGER,
    account_id TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    status INTEGER,
    error_type TEXT,
    scope TEXT,
    applied TEXT,
    instance TEXT,
    elapsed REAL NOT NULL,
    settled_at REAL NOT NULL,
    proxy TEXT
);
INSERT INTO "outcomes" VALUES(0,2,'acc_00','patched',1,200,NULL,NULL,NULL,NULL,5.11489899508887901902e-03,1.79594704163853502269e+09,NULL);
INSERT INTO "outcomes" VALUES(1,3,'acc_01','patched',1,200,NULL,NULL,NULL,NULL,5.18015000125160440802e-03,1.79594704163973569862e+09,'user0@p0.example.net:8080');
INSERT INTO "outcomes" VALUES(2,4,'acc_02','failed',1,401,'errors/disconnected_account','account','no','req_000000000001',3.53537399496417492628e-03,1.7959470416427497863e+09,'user1@p1.example.net:8080');
INSERT INTO "outcomes" VALUES(3,5,'acc_03','failed',1,401,'errors/disconnected_account','account','no','req_000000000002',3.57101000554393976926e-03,1.79594704164444875713e+09,NULL);
INSERT INTO "outcomes" VALUES(4,6,'acc_04','failed',1,401,'errors/disconnected_account','account','no','req_000000000003',3.16314900555880740284e-03,1.7959470416461348534e+09,'user2@p2.example.net:8080');
INSERT INTO "outcomes" VALUES(5,7,'acc_05','failed',1,401,'errors/disconnected_account','account','no','req_000000000004',2.80886799737345427274e-03,1.79594704164746212958e+09,'user3@p3.example.net:8080');
INSERT INTO "outcomes" VALUES(6,8,'acc_06','skipped',0,NULL,NULL,NULL,'no',NULL,0.0,1.79594704164901566509e+09,NULL);
INSERT INTO "outcomes" VALUES(7,9,'acc_07','skipped',0,NULL,NULL,NULL,'no',NULL,0.0,1.79594704164907670025e+09,NULL);
INSERT INTO "outcomes" VALUES(8,10,'acc_08','skipped',0,NULL,NULL,NULL,'no',NULL,0.0,1.79594704164911174774e+09,NULL);
INSERT INTO "outcomes" VALUES(9,11,'acc_09','skipped',0,NULL,NULL,NULL,'no',NULL,0.0,1.79594704164913892751e+09,NULL);
INSERT INTO "outcomes" VALUES(10,12,'acc_10','skipped',0,NULL,NULL,NULL,'no',NULL,0.0,1795947041.64916,NULL);
INSERT INTO "outcomes" VALUES(11,13,'acc_11','skipped',0,NULL,NULL,NULL,'no',NULL,0.0,1.79594704164923787111e+09,NULL);
CREATE TABLE proxies (
    label TEXT PRIMARY KEY,
    failures INTEGER NOT NULL,
    quarantined_at REAL
) WITHOUT ROWID
;
CREATE TABLE run (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO "run" VALUES('began',1.79594704163204097746e+09);
INSERT INTO "run" VALUES('command','postpress-async rotate fleet.csv --pool proxies.txt --in-flight 2 --halt 3');
INSERT INTO "run" VALUES('doubtful',0);
INSERT INTO "run" VALUES('folder','/srv/fleet');
INSERT INTO "run" VALUES('halted','3 accounts failed, all with errors/disconnected_account, which is the threshold');
INSERT INTO "run" VALUES('input',X'86759E93B1A1868242D39195BB024686F2182E67ED3012CCC7F93EC6DACD3227');
INSERT INTO "run" VALUES('key',X'129935401C2AF80FDF9EEDA28FC7237F');
INSERT INTO "run" VALUES('on unknown','retry');
INSERT INTO "run" VALUES('pool',X'870D51734B2CECCDE57AD6E0EEB28EC8C30CB1C8280AF0F22EF6C34708D69D02');
INSERT INTO "run" VALUES('reached',64);
INSERT INTO "run" VALUES('retry command','postpress-async retry-failed fleet.csv.rotation.sqlite3 fleet.csv --pool proxies.txt --in-flight 2');
INSERT INTO "run" VALUES('rows',X'2313B2FE41557F68E829AB62341706CBFC2378D4FCC9FD99AD98EBF4C539C4B2');
INSERT INTO "run" VALUES('run','d9a6a113e3bf55572e0e0dae');
INSERT INTO "run" VALUES('salt',X'A1A7B93FEB287018A8961C1BE070EFA6');
INSERT INTO "run" VALUES('target','this machine');
INSERT INTO "run" VALUES('total',12);
COMMIT;
