"""The existing system's MySQL schema (C3 Database schema), as its scripts make it but for the collation."""

TABLES = (
    """CREATE TABLE users (
        user_id smallint unsigned NOT NULL AUTO_INCREMENT, first_name varchar(50) NOT NULL,
        last_name varchar(50) NOT NULL, email varchar(255) NOT NULL, subscription_id tinyint unsigned NOT NULL,
        is_active tinyint NOT NULL, token text NOT NULL, userscol varchar(45) DEFAULT NULL, PRIMARY KEY (user_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4""",
    """CREATE TABLE subscriptions (
        subscription_id tinyint unsigned NOT NULL AUTO_INCREMENT, name varchar(50) NOT NULL,
        queue_limit tinyint unsigned NOT NULL, PRIMARY KEY (subscription_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4""",
    """CREATE TABLE engines (
        engine_id tinyint unsigned NOT NULL AUTO_INCREMENT, name varchar(50) NOT NULL, extension varchar(50) NOT NULL,
        download_path text NOT NULL, render_argument text NOT NULL, PRIMARY KEY (engine_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4""",
    """CREATE TABLE argtypes (
        argtype_id varchar(50) NOT NULL, type varchar(20) NOT NULL, regex text, PRIMARY KEY (argtype_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4""",
    """CREATE TABLE machines (
        machine_id tinyint unsigned NOT NULL AUTO_INCREMENT, ip_address varchar(45) NOT NULL,
        port int unsigned NOT NULL, PRIMARY KEY (machine_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4""",
    """CREATE TABLE renders (
        render_id bigint unsigned NOT NULL AUTO_INCREMENT, file_name varchar(255) NOT NULL, file_path text NOT NULL,
        file_size bigint NOT NULL, arguments text NOT NULL, engine_id tinyint unsigned NOT NULL,
        PRIMARY KEY (render_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4""",
    """CREATE TABLE tasks (
        task_id bigint unsigned NOT NULL AUTO_INCREMENT, user_id smallint unsigned NOT NULL,
        queue_time datetime DEFAULT NULL, start_time datetime DEFAULT NULL, end_time datetime DEFAULT NULL,
        is_running tinyint NOT NULL, is_success tinyint NOT NULL, render_id bigint unsigned NOT NULL,
        machine_id tinyint unsigned DEFAULT NULL, PRIMARY KEY (task_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4""",
    """CREATE TABLE queue (
        queue_id bigint unsigned NOT NULL AUTO_INCREMENT, task_id bigint unsigned NOT NULL, PRIMARY KEY (queue_id)
    ) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4""",
)
